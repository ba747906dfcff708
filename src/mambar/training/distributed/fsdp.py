"""Parameters, gradients and optimizer state sharded by PyTorch's FSDP2, for models that do not fit on one device."""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Sharded:
    """Every parameter is sharded along its first dimension and gathered one block at a time; a `Sharding`."""

    is_sharded = True

    def shard_model(self, model: nn.Module) -> None:
        """Shards each block, then the remaining parameters."""
        for module in model.modules():
            blocks = getattr(module, "blocks", None)
            for block in blocks if isinstance(blocks, nn.ModuleList | nn.Sequential) else ():
                fully_shard(block)
        fully_shard(model)

    def full_tensor(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def shard_tensor(self, tensor: Tensor, like: Tensor | None) -> Tensor:
        if not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)

    def gradient_sync(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Accumulates unsharded gradients; the last backward pass of a step reduces and scatters them."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
            model.set_is_last_backward(last)
        return nullcontext()
