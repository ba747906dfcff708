"""Launches of the LLVM kernels for both directions: the convolutions; the scans with gate and sum."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mambar.ops.bidirectional_mix import llvm_backward, llvm_convolutions, llvm_forward
from mambar.ops.bidirectional_mix.direction import ScanDirection
from mambar.ops.llvm.functions import num_channel_blocks
from mambar.ops.llvm.launch import addresses, in_scan_order, launch, should_stream, strided_arguments
from mambar.ops.llvm.machine import current_machine
from mambar.ops.selective_scan.llvm import Scan, ScanBackward


def convolve_both(x: Tensor, ways: Sequence[ScanDirection]) -> Tensor:
    """The convolution with SiLU in each direction, as (direction, batch, length, channels)."""
    machine = current_machine()
    batch, length, inner = x.shape
    out = torch.empty((2, batch, length, inner), dtype=x.dtype)
    largest = max(way.conv_weight.shape[1] for way in ways)
    launch(
        machine,
        llvm_convolutions,
        x.dtype,
        arguments={
            "num_tasks": batch * num_channel_blocks(machine, inner, llvm_convolutions.VECTORS_PER_BLOCK),
            "length": length,
            "inner": inner,
            "streaming": should_stream(machine, out),
        },
        directions=[
            (
                *in_scan_order(x, reverse),
                *in_scan_order(y, reverse),
                way.conv_weight.shape[1],
                way.conv_weight.data_ptr(),
                _address(way.conv_bias),
            )
            for way, y, reverse in zip(ways, out, (False, True), strict=True)
        ],
        scratch_floats=llvm_convolutions.scratch_floats(machine, largest),
    )
    return out


def scan_both(z: Tensor, scans: Sequence[Scan], checkpoints: Sequence[Tensor] | None, *, average: bool) -> Tensor:
    """The sum of both scans, or their mean, times silu(z); fills the checkpoints if given."""
    machine = current_machine()
    out = torch.empty(z.shape, dtype=z.dtype)
    num_tasks = z.shape[0] * num_channel_blocks(machine, z.shape[2], llvm_forward.VECTORS_PER_BLOCK)
    launch(
        machine,
        llvm_forward,
        z.dtype,
        arguments={
            **_shared(z, num_tasks, average=average),
            "streaming": should_stream(machine, out),
            "initial_state": 0,
            "last_state": 0,
        },
        directions=[
            (
                *in_scan_order(scan.u, reverse),
                *in_scan_order(scan.delta, reverse),
                *in_scan_order(z, reverse),
                *in_scan_order(scan.B, reverse),
                *in_scan_order(scan.C, reverse),
                *in_scan_order(out, reverse),
                scan.A.shape[1],
                scan.A.data_ptr(),
                _address(scan.D),
                _address(scan.delta_bias),
                _address(states),
            )
            for scan, states, reverse in zip(scans, checkpoints or (None, None), (False, True), strict=True)
        ],
        scratch_floats=llvm_forward.scratch_floats(machine, _largest_state(scans), z.shape[1]),
    )
    return out


def scan_both_backward(
    dout: Tensor, z: Tensor, dz: Tensor, scans: Sequence[Scan], checkpoints: Sequence[Tensor], *, average: bool
) -> list[Scan]:
    """The gradients of both scans; that of the gate is stored to dz."""
    machine = current_machine()
    both = [ScanBackward(scan, reverse=reverse) for scan, reverse in zip(scans, (False, True), strict=True)]
    own = [
        scan.arguments() | strided_arguments(scan.reverse, z=z, dout=dout, dz=dz) | addresses(checkpoints=states)
        for scan, states in zip(both, checkpoints, strict=True)
    ]
    launch(
        machine,
        llvm_backward,
        z.dtype,
        arguments={
            **_shared(z, z.shape[0] * both[0].tasks, average=average),
            "batch": z.shape[0],
            "blocks_per_task": both[0].blocks_per_task,
            "streaming": should_stream(machine, *(t for scan in both for t in (scan.du, scan.ddelta))),
            "dstate": 0,
            "dinitial_state": 0,
        },
        directions=[[values[name] for name in llvm_backward.DIRECTION_ARGUMENTS] for values in own],
        scratch_floats=llvm_backward.scratch_floats(machine, _largest_state(scans)),
    )
    return [scan.gradients() for scan in both]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _largest_state(scans: Sequence[Scan]) -> int:
    return max(scan.A.shape[1] for scan in scans)


def _shared(z: Tensor, num_tasks: int, *, average: bool) -> dict[str, int]:
    sizes = {"num_tasks": num_tasks, "length": z.shape[1], "inner": z.shape[2]}
    return {**sizes, "delta_softplus": True, "average": average}
