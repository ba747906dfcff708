"""One model on several processes: the house's own exact sum, PyTorch's DDP, or parameters sharded by FSDP2."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from mambar.training.distributed.gradients import AveragedGradients, Gradients, OrderedGradients
from mambar.training.distributed.process_group import ProcessGroup
from mambar.training.distributed.sharding import Replicated, Sharding
from mambar.training.recipe import Parallel


def choose_sharding(kind: Parallel, process_group: ProcessGroup) -> Sharding:
    """The layout of a recipe's `parallel`; on one process everything is whole."""
    if kind != "fsdp" or process_group.world_size == 1:
        return Replicated()
    # It pulls in half of PyTorch, seconds that no other run needs.
    from mambar.training.distributed.fsdp import Sharded

    return Sharded()


def parallelize(
    model: nn.Module,
    forward: nn.Module,
    parameters: Sequence[Tensor],
    *,
    kind: Parallel,
    sharding: Sharding,
    process_group: ProcessGroup,
    extras: int,
    num_shards: int,
    grad_accum_steps: int,
) -> tuple[nn.Module, Gradients]:
    """What to call in the forward pass, and how gradients are added up.

    `forward` is the model or its compiled form. On one process every kind is the exact one.
    """
    if kind == "exact" or process_group.world_size == 1:
        ordered = OrderedGradients(
            parameters, extras=extras, processes=process_group, shards=num_shards, accumulation=grad_accum_steps
        )
        return forward, ordered
    if kind == "fsdp":
        averaged = AveragedGradients(
            parameters,
            extras=extras,
            processes=process_group,
            backward_pass=lambda last: sharding.gradient_sync(model, last),
            whole=sharding.full_tensor,
        )
        return forward, averaged

    from torch.nn.parallel import DistributedDataParallel

    ids = [process_group.device.index] if process_group.device.type == "cuda" else None
    wrapped = DistributedDataParallel(forward, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)

    def synchronized(last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else wrapped.no_sync()

    return wrapped, AveragedGradients(
        parameters, extras=extras, processes=process_group, backward_pass=synchronized, whole=sharding.full_tensor
    )
