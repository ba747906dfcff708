"""The mix on CPUs: LLVM kernels for convolutions, scans, gate and sum; matrix products by the BLAS library.

Low-rank projections, step sizes and checkpoints are saved for the backward; the convolutions are recomputed.
"""

import torch
from torch import Tensor

from mambar.ops.bidirectional_mix.direction import ScanDirection
from mambar.ops.bidirectional_mix.llvm_scans import convolve_both, scan_both, scan_both_backward
from mambar.ops.causal_conv1d import llvm as convolution
from mambar.ops.llvm.machine import current_machine
from mambar.ops.llvm.matmul import linear, matmul
from mambar.ops.selective_scan.llvm import Scan, empty_checkpoints

# Up to this rank the scan computes the step sizes itself; above it a matrix product is faster.
LARGEST_FUSED_RANK = 16


def empty_saved(xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection) -> list[Tensor]:
    """Empty tensors for each direction: projections to step size, B and C; step sizes; checkpoints."""
    saved = []
    for way in (forward_params, backward_params):
        projected = xz.new_empty((*xz.shape[:2], way.x_proj.shape[0]))
        delta = xz.new_empty((*xz.shape[:2], way.A.shape[0]))
        saved += [projected, delta, empty_checkpoints(delta, way.A)]
    return saved


def forward(
    xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection, *, average: bool, for_backward: bool
) -> tuple[Tensor, list[Tensor]]:
    """The mix, and the tensors saved for `backward`."""
    x, z = xz.chunk(2, dim=-1)
    ways = (forward_params, backward_params)
    machine = current_machine()
    us = convolve_both(machine, x, ways)
    projections = [linear(u, way.x_proj) for way, u in zip(ways, us, strict=True)]
    deltas = [linear(p[..., : way.sizes[0]], way.dt_proj) for way, p in zip(ways, projections, strict=True)]
    checkpoints = [empty_checkpoints(x, way.A) for way in ways] if for_backward else None
    wide = [projected.float() for projected in projections]
    out = scan_both(machine, z, ways, us, wide, deltas, checkpoints, average=average, A_is_log=False)
    if checkpoints is None:
        return out, []
    each = zip(projections, deltas, checkpoints, strict=True)
    return out, [tensor for kept in each for tensor in kept]


def infer(xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection, *, average: bool) -> Tensor:
    """The mix in float32, with A_log as the A of the directions."""
    x, z = xz.chunk(2, dim=-1)
    ways = (forward_params, backward_params)
    machine = current_machine()
    us = convolve_both(machine, x, ways)
    projections = [linear(us[0], forward_params.x_proj), linear(us[1], backward_params.x_proj)]
    deltas = None
    if max(forward_params.sizes[0], backward_params.sizes[0]) > LARGEST_FUSED_RANK:
        deltas = [linear(p[..., : way.sizes[0]], way.dt_proj) for way, p in zip(ways, projections, strict=True)]
    return scan_both(machine, z, ways, us, projections, deltas, None, average=average, A_is_log=True)


def backward(
    dout: Tensor,
    xz: Tensor,
    forward_params: ScanDirection,
    backward_params: ScanDirection,
    saved: list[Tensor],
    *,
    average: bool,
) -> tuple[Tensor, ScanDirection, ScanDirection]:
    """The gradients of xz and of both directions' parameters."""
    x, z = xz.chunk(2, dim=-1)
    dxz = torch.empty(xz.shape, dtype=xz.dtype)
    dx, dz = dxz.chunk(2, dim=-1)
    ways = (forward_params, backward_params)
    projections, deltas, checkpoints = (saved[start:6:3] for start in range(3))
    us = convolve_both(current_machine(), x, ways)
    scans = [_scan(*each) for each in zip(ways, us, projections, deltas, strict=True)]
    gradients = scan_both_backward(dout, z, dz, scans, checkpoints, average=average)
    dforward, dbackward = (
        _through_projections(way, scan.u, projected, gradient, x, dx, reverse=reverse)
        for way, scan, projected, gradient, reverse in zip(
            ways, scans, projections, gradients, (False, True), strict=True
        )
    )
    return dxz, dforward, dbackward


def _scan(way: ScanDirection, u: Tensor, projected: Tensor, delta: Tensor) -> Scan:
    rank, state = way.sizes
    _, B, C = projected.split([rank, state, state], dim=-1)
    return Scan(u, delta, way.A, B.float(), C.float(), way.D, way.dt_bias)


def _through_projections(
    way: ScanDirection, u: Tensor, projected: Tensor, scan: Scan, x: Tensor, dx: Tensor, *, reverse: bool
) -> ScanDirection:
    """Gradients of the parameters from those of the scan; stores its part of dx, or adds it if `reverse`."""
    rank, state = way.sizes
    ddelta, du = scan.delta.flatten(0, 1), scan.u.flatten(0, 1)
    low = projected.flatten(0, 1)[:, :rank]
    dprojected = torch.empty(low.shape[0], rank + 2 * state, dtype=projected.dtype)
    parts = (matmul(ddelta, way.dt_proj), scan.B.flatten(0, 1), scan.C.flatten(0, 1))
    for target, part in zip(dprojected.split([rank, state, state], dim=-1), parts, strict=True):
        target.copy_(part)
    du += matmul(dprojected, way.x_proj)
    dweight, dbias = convolution.backward_into(
        dx, scan.u, x, way.conv_weight, way.conv_bias, silu=True, reverse=reverse, accumulate=reverse
    )
    return ScanDirection(
        conv_weight=dweight,
        conv_bias=dbias,
        x_proj=matmul(dprojected.t(), u.flatten(0, 1)),
        dt_proj=matmul(ddelta.t(), low),
        dt_bias=scan.delta_bias,  # type: ignore[arg-type]
        A=scan.A,
        D=scan.D,  # type: ignore[arg-type]
    )
