"""Scan kernels as custom operators: one opaque node of a graph, with the name of the backend as a constant."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mambar.ops.checks import check_kernel_dtypes, contiguous, rows
from mambar.ops.derivatives import needs_reference, reference_gradients, refuse_forward_mode
from mambar.ops.dispatch import kernel


class KernelOp:
    """Registers `torch.ops.mambar.NAME` and `NAME_backward`, which run `forward` and `backward` of a kernel module.

    NAME takes the tensors, the options, `for_backward` and the name of a backend. It returns a list: the outputs, then
    the tensors that the kernel saves if `for_backward`. NAME_backward also takes the gradients of the outputs.

    Args:
        tensors: Names of the tensors.
        optional: The tensors that may be None.
        options: Names of the options, booleans that a kernel takes as keywords.
        activations: The tensors of the first one's type; the others are float32, or float64 if it is.
        strided: The tensors that only need stride 1 over channels; the others are made contiguous.
        outputs: Allocates the outputs for given tensors.
        reference: The op in differentiable operations, for second derivatives.
        pack: Converts the tensors to the positional arguments of kernel and reference.
        keeps_output: Whether `saved` ends with the output in the backward.
    """

    def __init__(
        self,
        name: str,
        *,
        tensors: Sequence[str],
        optional: Sequence[str],
        options: Sequence[str],
        activations: Sequence[str],
        strided: Sequence[str],
        outputs: Callable[..., list[Tensor]],
        num_outputs: int,
        reference: Callable[..., Any],
        pack: Callable[..., Sequence[Any]] = lambda *tensors: tensors,
        keeps_output: bool = False,
    ) -> None:
        self._name, self._activations, self._outputs = name, activations, outputs
        self._num_outputs, self._reference, self._pack, self._keeps_output = num_outputs, reference, pack, keeps_output
        self._tensors, self._options = tensors, options
        self._kinds = [each in activations for each in tensors], [each in strided for each in tensors]
        schema = ", ".join(f"Tensor{'?' if each in optional else ''} {each.replace('.', '_')}" for each in tensors)
        flags = ", ".join(f"bool {option}" for option in options)
        gradients = "Tensor dy" + "".join(f", Tensor? gradient_{index}" for index in range(1, num_outputs))
        forward, backward = f"mambar::{name}", f"mambar::{name}_backward"
        torch.library.define(forward, f"({schema}, {flags}, bool for_backward, str backend) -> Tensor[]")
        # In the order of version 0.1: PyTorch's cache of compiled graphs does not notice another one.
        torch.library.define(backward, f"({gradients}, {schema}, Tensor[] saved, {flags}, str backend) -> Tensor[]")
        torch.library.impl(forward, "CompositeExplicitAutograd")(self._forward)
        torch.library.impl(backward, "CompositeExplicitAutograd")(self._backward)
        torch.library.register_fake(forward)(self._fake_forward)
        torch.library.register_fake(backward)(self._fake_backward)
        torch.library.register_autograd(forward, self._differentiate, setup_context=self._setup_context)
        self._run_backward = getattr(torch.ops.mambar, f"{name}_backward")

    def _split(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any], bool, str]:
        """The arguments of NAME: the tensors, the options by name, `for_backward` and the backend."""
        count = len(self._tensors)
        *options, for_backward, backend = arguments[count:]
        return arguments[:count], dict(zip(self._options, options, strict=True)), for_backward, backend

    def _prepared(self, tensors: Sequence[Any]) -> Sequence[Any]:
        dtype = tensors[0].dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        prepared = []
        for tensor, is_activation, is_strided in zip(tensors, *self._kinds, strict=True):
            if tensor is not None:
                if tensor.dtype != (dtype if is_activation else wide):
                    check_kernel_dtypes(dict(zip(self._tensors, tensors, strict=True)), self._activations)
                tensor = rows(tensor) if is_strided else tensor.contiguous()
            prepared.append(tensor)
        return self._pack(*prepared)

    def _forward(self, *arguments: Any) -> list[Tensor]:
        tensors, options, for_backward, backend = self._split(arguments)
        refuse_forward_mode(self._name, backend)
        run = kernel(self._name, backend).forward
        *outputs, saved = run(*self._prepared(tensors), **options, for_backward=for_backward)
        return [*outputs, *saved]

    def _fake_forward(self, *arguments: Any) -> list[Tensor]:
        tensors, _, for_backward, backend = self._split(arguments)
        empty_saved = kernel(self._name, backend).empty_saved
        return [*self._outputs(*tensors), *(empty_saved(*self._pack(*tensors)) if for_backward else [])]

    def _backward(self, *arguments: Any) -> list[Tensor]:
        start, stop = self._num_outputs, self._num_outputs + len(self._tensors)
        (dy, *others), tensors, saved = arguments[:start], arguments[start:stop], arguments[stop]
        *flags, backend = arguments[stop + 1 :]
        options = dict(zip(self._options, flags, strict=True))
        given = {self._tensors[0]: tensors[0], "dy": dy, **{f"gradient {i}": g for i, g in enumerate(others, 1)}}
        check_kernel_dtypes(given, (self._tensors[0], "dy"))
        run = kernel(self._name, backend).backward
        found = run(rows(dy), *map(contiguous, others), *self._prepared(tensors), saved, **options)
        flat = [gradient for part in found for gradient in (part if isinstance(part, tuple) else (part,))]
        return [dy.new_empty(0) if gradient is None else gradient for gradient in flat]

    def _fake_backward(self, *arguments: Any) -> list[Tensor]:
        tensors = arguments[self._num_outputs :][: len(self._tensors)]
        return [tensors[0].new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in tensors]

    def _setup_context(self, ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
        tensors, ctx.options, _, ctx.backend = self._split(inputs)
        kept = output[:1] if self._keeps_output else ()
        ctx.save_for_backward(*tensors, *output[self._num_outputs :], *kept)
        ctx.set_materialize_grads(False)

    def _differentiate(self, ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        # Read once: gradient checkpointing does not allow a second read.
        all_saved, count = ctx.saved_tensors, len(self._tensors)
        tensors, saved = all_saved[:count], all_saved[count:]
        dy, *others = gradients[: self._num_outputs]
        others_of_schema = [None] * (len(self._options) + 2)
        if needs_reference(dy, *others):

            def run(*given: Any) -> Any:
                return self._reference(*self._pack(*given), **ctx.options)

            return *reference_gradients(run, tensors, (dy, *others)), *others_of_schema
        if dy is None:
            dy = torch.zeros_like(self._outputs(*tensors)[0])
        found = self._run_backward(dy, *others, *tensors, list(saved), *ctx.options.values(), ctx.backend)
        return *(None if t is None else g for t, g in zip(tensors, found, strict=True)), *others_of_schema
