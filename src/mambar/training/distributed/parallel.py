"""One model on several processes: the house's own exact sum, PyTorch's DDP, or parameters sharded by FSDP2."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from mambar.training.distributed.gradients import AveragedGradients, Gradients, OrderedGradients
from mambar.training.distributed.process_group import Processes
from mambar.training.recipe import Parallel


class Layout:
    """How parameters lie over the processes: here whole in each of them. `fsdp.ShardedLayout` cuts them."""

    cuts = False

    def shard(self, model: nn.Module) -> None:
        """Cuts the parameters of a model over the processes."""

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor in full; where it is cut, all processes must call this."""
        return tensor

    def cut(self, tensor: Tensor, like: Tensor | None) -> Tensor:
        """This process's part of a full tensor, as `like` is cut."""
        return tensor

    def synchronized(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """The surroundings of a backward pass, which exchanges gradients only if it is the last of a step."""
        return nullcontext()


def layout(kind: Parallel, processes: Processes) -> Layout:
    """The layout of a recipe's `parallel`; on one process everything is whole."""
    if kind != "fsdp" or processes.world == 1:
        return Layout()
    # It pulls in half of PyTorch, seconds that no other run needs.
    from mambar.training.distributed.fsdp import ShardedLayout

    return ShardedLayout()


def parallelize(
    model: nn.Module,
    forward: nn.Module,
    parameters: Sequence[Tensor],
    *,
    kind: Parallel,
    lies: Layout,
    processes: Processes,
    extras: int,
    shards: int,
    accumulation: int,
) -> tuple[nn.Module, Gradients]:
    """What to call in the forward pass, and how gradients are added up.

    `forward` is the model or its compiled form. On one process every kind is the exact one.
    """
    if kind == "exact" or processes.world == 1:
        ordered = OrderedGradients(
            parameters, extras=extras, processes=processes, shards=shards, accumulation=accumulation
        )
        return forward, ordered
    if kind == "fsdp":
        averaged = AveragedGradients(
            parameters,
            extras=extras,
            processes=processes,
            backward_pass=lambda last: lies.synchronized(model, last),
            whole=lies.whole,
        )
        return forward, averaged

    from torch.nn.parallel import DistributedDataParallel

    ids = [processes.device.index] if processes.device.type == "cuda" else None
    wrapped = DistributedDataParallel(forward, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)

    def synchronized(last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else wrapped.no_sync()

    return wrapped, AveragedGradients(
        parameters, extras=extras, processes=processes, backward_pass=synchronized, whole=lies.whole
    )
