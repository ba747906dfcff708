"""Derivatives that kernels do not implement: second derivatives use the reference, others raise an error."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mambar.errors import BackendUnavailable
from mambar.ops.dispatch import is_transformed


def needs_reference(*output_gradients: Tensor | None) -> bool:
    """Whether the backward pass that runs now is itself differentiated (create_graph=True) or batched."""
    # is_grads_batched=True of torch.autograd.grad uses batched tensors that are not those of torch.func.vmap.
    is_batched = torch._C._functorch.is_legacy_batchedtensor  # type: ignore[attr-defined]
    batched = any(gradient is not None and is_batched(gradient) for gradient in output_gradients)
    return torch.is_grad_enabled() or is_transformed() or batched


def reference_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    output_gradients: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of `function(*tensors)` by autograd, which can be differentiated again; None where not needed."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        # Views: one tensor may be a function of another, and only its direct use counts here.
        inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [
            (output, gradient)
            for output, gradient in zip(outputs, output_gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
        if not pairs or not wanted:
            return [None] * len(inputs)
        used, weights = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(used, wanted, weights, create_graph=True, allow_unused=True))
        return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


def refuse_forward_mode(op: str, backend: str) -> None:
    """Raises inside forward-mode AD, where a kernel would ignore the tangents."""
    if forward_ad._current_level >= 0:
        raise BackendUnavailable(
            f"{op}: backend {backend!r} does not support forward-mode AD; call mambar.ops.{op} with backend='auto', "
            "outside torch.compile."
        )
