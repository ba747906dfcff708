"""How the gradients of a step's shards become one sum: in a fixed order, or by PyTorch's own engines."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.training.distributed.process_group import ProcessGroup


@runtime_checkable
class Gradients(Protocol):
    """Gradients and a few further numbers (`extras`) that are added up over the shards of a step.

    For each step: `open_step`; for each shard `open_shard`, backward passes, `close_shard`; then `extras` and `norm`
    are those of the whole step in every process, and `hand_over` puts the sum where the optimiser looks for it.
    """

    # What a loss is multiplied by before the backward pass, so that the result is the sum over processes.
    loss_factor: float

    def open_step(self) -> None:
        """Forgets the step before."""
        ...

    def open_shard(self) -> None:
        """Starts a shard."""
        ...

    def backward_pass(self, *, last: bool) -> AbstractContextManager[object]:
        """The surroundings of one micro-batch's forward and backward pass; `last` of the step in this process."""
        ...

    def add(self, index: int, values: Tensor) -> None:
        """Adds to the extras of this shard, from `index` on."""
        ...

    def close_shard(self, *, last: bool) -> None:
        """Ends a shard; `last` of the step in this process."""
        ...

    @property
    def extras(self) -> Float[Tensor, "extras"]:
        """The sum of the further numbers over all shards and processes."""
        ...

    def norm(self) -> Float[Tensor, ""]:
        """The 2-norm of the sum of all gradients."""
        ...

    def multiply(self, factor: float) -> None:
        """Multiplies the sum of gradients."""
        ...

    def hand_over(self) -> None:
        """Puts the sum into the parameters' `.grad`."""
        ...


class OrderedGradients:
    """All gradients in one flat tensor, added shard by shard in one order: the same bits on any number of processes.

    A parameter's `.grad` is a view into this process's part, where the backward pass adds up one shard; closing a round
    adds the shards of all processes to the total, in the order of the shards.
    """

    loss_factor = 1.0

    def __init__(
        self, parameters: Sequence[Tensor], *, extras: int, processes: ProcessGroup, shards: int, accumulation: int
    ) -> None:
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) != 1:
            raise InputError(f"trainable parameters must share one dtype and device; there are {kinds or 'none'}.")
        dtype, device = kinds.pop()
        self._processes = processes
        self._size = sum(parameter.numel() for parameter in parameters)
        self._total = torch.zeros(self._size + extras, dtype=dtype, device=device)
        # One backward pass a shard in one process: it may add to the total directly.
        self._separate = processes.world_size > 1 or (shards > 1 and accumulation > 1)
        self._mine = torch.zeros_like(self._total) if self._separate else self._total
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.grad = self._mine[start:stop].view_as(parameter)
            start = stop

    def open_step(self) -> None:
        """Forgets the step before."""
        self._total.zero_()

    def open_shard(self) -> None:
        """Starts a shard from zero."""
        if self._separate:
            self._mine.zero_()

    def backward_pass(self, *, last: bool) -> AbstractContextManager[object]:
        """Nothing special."""
        return nullcontext()

    def add(self, index: int, values: Tensor) -> None:
        """Adds to the extras of this shard."""
        self._mine[self._size + index :][: values.numel()] += values

    def close_shard(self, *, last: bool) -> None:
        """Adds this round's shards, one of each process, to the total."""
        if self._separate:
            self._processes.all_reduce_ordered(self._total, self._mine)

    @property
    def extras(self) -> Float[Tensor, "extras"]:
        """The sum of the further numbers."""
        return self._total[self._size :]

    def norm(self) -> Float[Tensor, ""]:
        """The 2-norm of the total."""
        return torch.linalg.vector_norm(self._total[: self._size])

    def multiply(self, factor: float) -> None:
        """Multiplies the total."""
        self._total[: self._size].mul_(factor)

    def hand_over(self) -> None:
        """Copies the total to where the views are."""
        if self._separate:
            self._mine.copy_(self._total)


class AveragedGradients:
    """Gradients that DDP or FSDP average over the processes while the backward pass runs; their order is PyTorch's."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        extras: int,
        processes: ProcessGroup,
        backward_pass: Callable[[bool], AbstractContextManager[object]],
        whole: Callable[[Tensor], Tensor],
    ) -> None:
        self.loss_factor = float(processes.world_size)
        self._parameters = list(parameters)
        self._processes = processes
        self._backward_pass = backward_pass
        self._whole = whole
        self._extras = torch.zeros(extras, device=processes.device)

    def open_step(self) -> None:
        """Forgets the step before; the memory stays where DDP's buckets are."""
        gradients = self._gradients()
        if gradients:
            torch._foreach_zero_(gradients)  # pyright: ignore[reportPrivateImportUsage]
        self._extras.zero_()

    def open_shard(self) -> None:
        """Shards add up in `.grad`."""

    def backward_pass(self, *, last: bool) -> AbstractContextManager[object]:
        """Only the last backward pass of the step exchanges gradients."""
        return self._backward_pass(last)

    def add(self, index: int, values: Tensor) -> None:
        """Adds to the extras of this process."""
        self._extras[index:][: values.numel()] += values

    def close_shard(self, *, last: bool) -> None:
        """Adds the extras up after the last shard."""
        if last:
            self._extras = self._processes.all_reduce(self._extras)

    @property
    def extras(self) -> Float[Tensor, "extras"]:
        """The sum of the further numbers."""
        return self._extras

    def norm(self) -> Float[Tensor, ""]:
        """The 2-norm over all parameters, also where each process holds a part."""
        return self._whole(nn.utils.get_total_norm(self._gradients()))

    def multiply(self, factor: float) -> None:
        """Multiplies all gradients."""
        torch._foreach_mul_(self._gradients(), factor)  # pyright: ignore[reportPrivateImportUsage]

    def hand_over(self) -> None:
        """They are there already."""

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]
