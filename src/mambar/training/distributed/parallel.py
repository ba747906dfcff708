"""Data parallel training: the exact ordered sum, PyTorch's DDP, or FSDP2."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch import Tensor, nn

from mambar.training.distributed.gradients import (
    AveragedReducer,
    GradientReducer,
    OrderedReducer,
    SummedReducer,
)
from mambar.training.distributed.process_group import ProcessGroup
from mambar.training.distributed.sharding import Replicated, Sharding
from mambar.training.recipe import Parallel


def choose_sharding(kind: Parallel, process_group: ProcessGroup) -> Sharding:
    """The sharding of a recipe's `parallel`; parameters are replicated on one process."""
    if kind != "fsdp" or process_group.world_size == 1:
        return Replicated()
    # FSDP takes seconds to import.
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
    graphed: bool = False,
) -> tuple[nn.Module, GradientReducer]:
    """The module to call in the forward pass, and the reduction of its gradients.

    forward: the model or its compiled form. extras: count of further numbers that are summed beside the gradients. On
    one process every kind is "exact". graphed: the passes are replayed from CUDA graphs.
    """
    if kind == "exact" or process_group.world_size == 1:
        shards = {"num_shards": num_shards, "grad_accum_steps": grad_accum_steps}
        return forward, OrderedReducer(parameters, extras=extras, process_group=process_group, **shards)
    if graphed:
        return forward, SummedReducer(parameters, extras=extras, process_group=process_group)
    if kind == "fsdp":
        called, backward_context = forward, partial(sharding.gradient_sync, model)
    else:
        from torch.nn.parallel import DistributedDataParallel

        ids = [process_group.device.index] if process_group.device.type == "cuda" else None
        called = DistributedDataParallel(forward, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)

        def backward_context(last: bool) -> AbstractContextManager[object]:
            return nullcontext() if last else called.no_sync()

    return called, AveragedReducer(
        parameters,
        extras=extras,
        process_group=process_group,
        backward_context=backward_context,
        full_tensor=sharding.full_tensor,
    )
