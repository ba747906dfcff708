"""All gradients in one flat tensor, beside the few numbers that the processes agree on at every step."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.training.distributed import Processes


class Gradients:
    """The step's sum of gradients over shards, added shard by shard in one order.

    A parameter's `.grad` is a view into `mine`, where the backward pass adds up one shard; `close_shards` adds
    the shards of this round to `total`, in the order of the shards, whoever computed them. So the result has
    the same bits on any number of processes. `extras` are further numbers that are added up in the same way.
    """

    def __init__(self, parameters: list[nn.Parameter], *, extras: int, separate: bool) -> None:
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) != 1:
            raise InputError(f"trainable parameters must share one dtype and device; there are {kinds or 'none'}.")
        dtype, device = kinds.pop()
        size = sum(parameter.numel() for parameter in parameters)
        self._size = size
        self._flat = torch.zeros(size + extras, dtype=dtype, device=device)
        # With one shard at a time to a process, its gradients may be added to the total directly.
        self._mine = torch.zeros_like(self._flat) if separate else self._flat
        self._separate = separate
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.grad = self._mine[start:stop].view_as(parameter)
            start = stop

    @property
    def total(self) -> Float[Tensor, "parameters"]:
        """The sum over the shards closed so far; flat."""
        return self._flat[: self._size]

    @property
    def total_extras(self) -> Float[Tensor, "extras"]:
        """The sum of the further numbers."""
        return self._flat[self._size :]

    @property
    def extras(self) -> Float[Tensor, "extras"]:
        """The further numbers of this process's shard."""
        return self._mine[self._size :]

    def open_step(self) -> None:
        """Forgets the step before."""
        self._flat.zero_()

    def open_shard(self) -> None:
        """Starts a shard from zero."""
        if self._separate:
            self._mine.zero_()

    def close_shards(self, processes: Processes) -> None:
        """Adds this round's shards, one of each process, to the total."""
        if self._separate:
            processes.add_in_order(self._flat, self._mine)

    def hand_over(self) -> None:
        """Puts the total where the optimiser looks for it: the parameters' `.grad`."""
        if self._separate:
            self._mine.copy_(self._flat)
