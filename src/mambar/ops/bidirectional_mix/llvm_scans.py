"""Launches of the LLVM kernels for both directions: the convolutions; the scans with gate and sum."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mambar.ops.bidirectional_mix import llvm_backward, llvm_convolutions, llvm_forward
from mambar.ops.bidirectional_mix.direction import ScanDirection
from mambar.ops.llvm.functions import num_channel_blocks
from mambar.ops.llvm.launch import in_scan_order, launch, launch_in_order, should_stream, strided_arguments
from mambar.ops.llvm.machine import Machine, current_machine
from mambar.ops.selective_scan.llvm import Scan, ScanBackward


def convolve_both(machine: Machine, x: Tensor, ways: Sequence[ScanDirection]) -> tuple[Tensor, Tensor]:
    """The convolution with SiLU in each direction."""
    batch, length, inner = x.shape
    outputs = (torch.empty((batch, length, inner), dtype=x.dtype), torch.empty((batch, length, inner), dtype=x.dtype))
    num_tasks = batch * num_channel_blocks(machine, inner, llvm_convolutions.VECTORS_PER_BLOCK)
    values = [num_tasks, length, inner, should_stream(machine, *outputs)]
    for way, out, reverse in zip(ways, outputs, (False, True), strict=True):
        weight = way.conv_weight
        values += in_scan_order(x, reverse)
        values += in_scan_order(out, reverse)
        values += (weight.shape[1], weight.data_ptr(), _address(way.conv_bias))
    taps = max(way.conv_weight.shape[1] for way in ways)
    scratch_floats = llvm_convolutions.scratch_floats(machine, taps)
    launch_in_order(machine, llvm_convolutions, x.dtype, values, scratch_floats=scratch_floats)
    return outputs


def scan_both(
    machine: Machine,
    z: Tensor,
    ways: Sequence[ScanDirection],
    us: Sequence[Tensor],
    projections: Sequence[Tensor],
    deltas: Sequence[Tensor] | None,
    checkpoints: Sequence[Tensor] | None,
    *,
    average: bool,
    A_is_log: bool,
) -> Tensor:
    """The sum of both scans, or their mean, times silu(z); fills the checkpoints if given.

    The float32 projections hold the low-rank step size, B and C. Without `deltas` the scans compute the step sizes.
    """
    batch, length, inner = z.shape
    out = torch.empty((batch, length, inner), dtype=z.dtype)
    num_tasks = batch * num_channel_blocks(machine, inner, llvm_forward.VECTORS_PER_BLOCK)
    softplus, no_states = True, (0, 0)
    values = [num_tasks, length, inner, softplus, average, A_is_log, should_stream(machine, out), *no_states]
    none = (None, None)
    each = zip(ways, us, projections, deltas or none, checkpoints or none, (False, True), strict=True)
    for way, u, projected, delta, states, reverse in each:
        rank, state = way.sizes
        values += in_scan_order(u, reverse)
        values += (0, 0, 0) if delta is None else in_scan_order(delta, reverse)
        values += in_scan_order(z, reverse)
        values += in_scan_order(projected, reverse, rank)
        values += in_scan_order(projected, reverse, rank + state)
        values += in_scan_order(out, reverse)
        values += (state, way.A.data_ptr(), way.D.data_ptr(), way.dt_bias.data_ptr(), _address(states))
        values += (rank, way.dt_proj.data_ptr()) if delta is None else (0, 0)
    rank, state = (max(sizes) for sizes in zip(ways[0].sizes, ways[1].sizes, strict=True))
    scratch_floats = llvm_forward.scratch_floats(machine, state, length, rank)
    launch_in_order(machine, llvm_forward, z.dtype, values, scratch_floats=scratch_floats)
    return out


def scan_both_backward(
    dout: Tensor, z: Tensor, dz: Tensor, scans: Sequence[Scan], checkpoints: Sequence[Tensor], *, average: bool
) -> list[Scan]:
    """The gradients of both scans; that of the gate is stored to dz."""
    machine = current_machine()
    both = [ScanBackward(scan, reverse=reverse) for scan, reverse in zip(scans, (False, True), strict=True)]
    arguments = {
        "num_tasks": z.shape[0] * both[0].tasks,
        "length": z.shape[1],
        "inner": z.shape[2],
        "batch": z.shape[0],
        "blocks_per_task": both[0].blocks_per_task,
        "delta_softplus": True,
        "average": average,
        "streaming": should_stream(machine, *(t for scan in both for t in (scan.du, scan.ddelta))),
        "dstate": 0,
        "dinitial_state": 0,
    }
    for direction, scan, states in zip(("forward", "backward"), both, checkpoints, strict=True):
        rows = strided_arguments(scan.reverse, z=z, dout=dout, dz=dz)
        own = {**scan.arguments(), **rows, "checkpoints": states.data_ptr()}
        arguments |= {f"{direction}_{name}": value for name, value in own.items()}
    largest_state = max(scan.A.shape[1] for scan in scans)
    scratch_floats = llvm_backward.scratch_floats(machine, largest_state)
    launch(machine, llvm_backward, z.dtype, arguments=arguments, scratch_floats=scratch_floats)
    return [scan.gradients() for scan in both]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
