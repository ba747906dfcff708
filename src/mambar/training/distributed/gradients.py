"""Reduction of gradients and of a few further numbers (`extras`) over the shards of a step.

Call order: `begin_step`; for each shard `begin_shard`, the backward passes within `backward_context`, `end_shard`. The
`last` pass and shard are the last ones of the step on this rank. Then `extras` and `norm` are those of the whole step
on every rank, and `write_grads` writes the sum to the parameters' `.grad`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.training.distributed.process_group import ProcessGroup


class OrderedReducer:
    """Sums all gradients in one flat tensor, shard by shard in a fixed order: bit-identical for any number of ranks.

    A parameter's `.grad` is a view of this rank's buffer, in which the backward pass accumulates one shard. `end_shard`
    adds the current shard of every rank to the total, in the order of the shards.
    """

    # Factor of the loss before the backward pass, so that the result is the sum over ranks.
    loss_factor = 1.0

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        extras: int,
        process_group: ProcessGroup,
        num_shards: int,
        grad_accum_steps: int,
    ) -> None:
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) != 1:
            raise InputError(f"trainable parameters have {kinds or 'no'} dtypes and devices; one is allowed.")
        dtype, device = kinds.pop()
        self._process_group = process_group
        self._size = sum(parameter.numel() for parameter in parameters)
        self._total = torch.zeros(self._size + extras, dtype=dtype, device=device)
        # With one rank and one backward pass per shard, gradients accumulate in the total directly.
        self._separate = process_group.world_size > 1 or (num_shards > 1 and grad_accum_steps > 1)
        self._local = torch.zeros_like(self._total) if self._separate else self._total
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.grad = self._local[start:stop].view_as(parameter)
            start = stop

    def begin_step(self) -> None:
        """Resets the total to zero."""
        self._total.zero_()

    def begin_shard(self) -> None:
        """Resets this rank's buffer to zero."""
        if self._separate:
            self._local.zero_()

    def backward_context(self, *, last: bool) -> AbstractContextManager[object]:
        return nullcontext()

    def add_extras(self, index: int, values: Tensor) -> None:
        """Adds `values` to the extras of this shard."""
        self._local[self._size + index :][: values.numel()] += values

    def end_shard(self, *, last: bool) -> None:
        """Adds the current shard of every rank to the total."""
        if self._separate:
            self._process_group.all_reduce_ordered(self._total, self._local)

    @property
    def extras(self) -> Float[Tensor, "extras"]:
        return self._total[self._size :]

    def norm(self) -> Float[Tensor, ""]:
        return torch.linalg.vector_norm(self._total[: self._size])

    def scale(self, factor: float | Tensor) -> None:
        self._total[: self._size].mul_(factor)

    def write_grads(self) -> None:
        """Copies the total to the buffer that the parameters' `.grad` are views of."""
        if self._separate:
            self._local.copy_(self._total)


class SummedReducer(OrderedReducer):
    """The flat gradients, summed over the ranks by one all-reduce after the backward passes.

    For passes that are replayed from a CUDA graph, in which DDP could not start its own reductions.
    """

    def __init__(self, parameters: Sequence[Tensor], *, extras: int, process_group: ProcessGroup) -> None:
        super().__init__(
            parameters,
            extras=extras,
            process_group=replace(process_group, world_size=1),
            num_shards=1,
            grad_accum_steps=1,
        )
        self._ranks = process_group

    def end_shard(self, *, last: bool) -> None:
        """Sums over ranks after the last shard."""
        if last:
            self._ranks.all_reduce(self._total)


class AveragedReducer:
    """Gradients that DDP or FSDP average over the ranks during the backward pass, in PyTorch's order."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        extras: int,
        process_group: ProcessGroup,
        backward_context: Callable[[bool], AbstractContextManager[object]],
        full_tensor: Callable[[Tensor], Tensor],
    ) -> None:
        self.loss_factor = float(process_group.world_size)
        self._parameters = list(parameters)
        self._process_group = process_group
        self._backward_context = backward_context
        self._full_tensor = full_tensor
        self._extras = torch.zeros(extras, device=process_group.device)

    def begin_step(self) -> None:
        """Resets gradients to zero in place, as they are views of DDP's buckets."""
        gradients = self._gradients()
        if gradients:
            torch._foreach_zero_(gradients)  # pyright: ignore[reportPrivateImportUsage]
        self._extras.zero_()

    def begin_shard(self) -> None:
        """No operation: shards accumulate in `.grad`."""

    def backward_context(self, *, last: bool) -> AbstractContextManager[object]:
        """Only the last backward pass of the step reduces gradients."""
        return self._backward_context(last)

    def add_extras(self, index: int, values: Tensor) -> None:
        self._extras[index:][: values.numel()] += values

    def end_shard(self, *, last: bool) -> None:
        """Sums the extras over ranks after the last shard."""
        if last:
            self._extras = self._process_group.all_reduce(self._extras)

    @property
    def extras(self) -> Float[Tensor, "extras"]:
        return self._extras

    def norm(self) -> Float[Tensor, ""]:
        """The L2 norm over all parameters, sharded ones included."""
        return self._full_tensor(nn.utils.get_total_norm(self._gradients()))

    def scale(self, factor: float | Tensor) -> None:
        torch._foreach_mul_(self._gradients(), factor)  # pyright: ignore[reportPrivateImportUsage]

    def write_grads(self) -> None:
        """No operation: `.grad` holds the average already."""

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]


GradientReducer = OrderedReducer | AveragedReducer
