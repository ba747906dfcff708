"""Parameters, gradients and optimiser cut over the processes by PyTorch's FSDP2: for models that do not fit one."""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mambar.nn.block import MambaBlock
from mambar.training.distributed.parallel import Layout


class ShardedLayout(Layout):
    """Every parameter cut along its first dimension, gathered a block at a time."""

    cuts = True

    def shard(self, model: nn.Module) -> None:
        """Cuts the parameters, block by block."""
        for module in model.modules():
            if isinstance(module, MambaBlock):
                fully_shard(module)
        fully_shard(model)

    def whole(self, tensor: Tensor) -> Tensor:
        """The parts of all processes together."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def cut(self, tensor: Tensor, like: Tensor | None) -> Tensor:
        """This process's part."""
        if not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)

    def synchronized(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Keeps gradients whole until the last backward pass, which scatters their sum."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
            model.set_is_last_backward(last)
        return nullcontext()
