"""How model parameters are placed on the ranks of a run; `Replicated` here, `Sharded` in `fsdp`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Sharding(Protocol):
    """Placement of parameters on the ranks of a run."""

    # True if each rank stores only a part of every parameter.
    is_sharded: bool

    def shard_model(self, model: nn.Module) -> None:
        """Shards the parameters of `model` in place."""
        ...

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """The full tensor; a collective call if `is_sharded`."""
        ...

    def shard_tensor(self, tensor: Tensor, like: Tensor | None) -> Tensor:
        """This rank's part of a full tensor, sharded like `like`."""
        ...

    def gradient_sync(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Context of a backward pass; gradients are reduced only in the `last` one of a step."""
        ...


class Replicated:
    """Every parameter is stored in full on every rank."""

    is_sharded = False

    def shard_model(self, model: nn.Module) -> None:
        pass

    def full_tensor(self, tensor: Tensor) -> Tensor:
        return tensor

    def shard_tensor(self, tensor: Tensor, like: Tensor | None) -> Tensor:
        return tensor

    def gradient_sync(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        return nullcontext()
