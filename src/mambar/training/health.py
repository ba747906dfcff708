"""What goes on inside a model: activation norms, outliers, step sizes; and the first module with a bad number."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def first_bad_module(model: nn.Module, run: Callable[[], Tensor]) -> str | None:
    """The name of the first thing that holds NaN or Inf, None if nothing does.

    In this order: a parameter; a module's output in the forward pass that `run` makes (it gives the loss); a
    parameter's gradient in the backward pass, the one reached first. Gradients end as they were before.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"parameter {name}"
    with _watched(model) as found, torch.enable_grad():
        loss = run()
    if found:
        return f"module {found[0]}"
    if not _finite(loss):
        return "the loss"
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in parameters], allow_unused=True)
    for (name, _), gradient in reversed(list(zip(parameters, gradients, strict=True))):
        if gradient is not None and not _finite(gradient):
            return f"gradient of {name}"
    return None


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    found: list[str] = []
    handles = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not _finite(output):
                found.append(name)

        return look

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(hook(name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())
