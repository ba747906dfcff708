"""Launches of the fused LLVM kernels for both scans, the gate and the sum."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mambar.ops.bidirectional_mix import llvm_backward, llvm_forward
from mambar.ops.llvm.functions import num_channel_blocks
from mambar.ops.llvm.launch import addresses, launch, should_stream, strided_arguments
from mambar.ops.llvm.machine import current_machine
from mambar.ops.selective_scan.llvm import Scan, ScanBackward


def scan_both(z: Tensor, scans: Sequence[Scan], checkpoints: Sequence[Tensor] | None, *, average: bool) -> Tensor:
    """The sum of both scans, or their mean, times silu(z); fills the checkpoints if given."""
    out = torch.empty(z.shape, dtype=z.dtype)
    own = [
        scan.arguments(reverse=reverse) | strided_arguments(reverse, z=z, out=out) | addresses(checkpoints=states)
        for scan, states, reverse in zip(scans, checkpoints or (None, None), (False, True), strict=True)
    ]
    num_tasks = z.shape[0] * num_channel_blocks(current_machine(), z.shape[2], llvm_forward.VECTORS_PER_BLOCK)
    only_forward = {"streaming": should_stream(current_machine(), out), "initial_state": 0, "last_state": 0}
    launch(
        llvm_forward,
        z.dtype,
        arguments=_arguments(z, num_tasks, own, average=average) | only_forward,
        scratch_floats=llvm_forward.scratch_floats(current_machine(), _largest_state(scans), z.shape[1]),
    )
    return out


def scan_both_backward(
    dout: Tensor, z: Tensor, dz: Tensor, scans: Sequence[Scan], checkpoints: Sequence[Tensor], *, average: bool
) -> list[Scan]:
    """The gradients of both scans; that of the gate is stored to dz."""
    both = [ScanBackward(scan, reverse=reverse) for scan, reverse in zip(scans, (False, True), strict=True)]
    own = [
        scan.arguments() | strided_arguments(scan.reverse, z=z, dout=dout, dz=dz) | addresses(checkpoints=states)
        for scan, states in zip(both, checkpoints, strict=True)
    ]
    only_backward = {
        "batch": z.shape[0],
        "blocks_per_task": both[0].blocks_per_task,
        "streaming": should_stream(current_machine(), *(t for scan in both for t in (scan.du, scan.ddelta))),
        "dstate": 0,
        "dinitial_state": 0,
    }
    launch(
        llvm_backward,
        z.dtype,
        arguments=_arguments(z, z.shape[0] * both[0].tasks, own, average=average) | only_backward,
        scratch_floats=llvm_backward.scratch_floats(current_machine(), _largest_state(scans)),
    )
    return [scan.gradients() for scan in both]


def _largest_state(scans: Sequence[Scan]) -> int:
    return max(scan.A.shape[1] for scan in scans)


def _arguments(z: Tensor, num_tasks: int, own: list[dict[str, int]], *, average: bool) -> dict[str, int]:
    """The arguments of both kernels; the names of those that each direction has of its `own` get its prefix."""
    sizes = {"num_tasks": num_tasks, "length": z.shape[1], "inner": z.shape[2]}
    named = zip(("forward", "backward"), own, strict=True)
    directions = {f"{direction}_{name}": value for direction, values in named for name, value in values.items()}
    return {**sizes, "delta_softplus": True, "average": average, **directions}
