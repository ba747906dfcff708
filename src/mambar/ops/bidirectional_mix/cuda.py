"""Both directions of the mixer in CUDA C++: one convolution, one scan, one gate; products by cuBLAS.

Nothing is flipped or transposed, and x and z are read where in_proj left them. The backward computes the
convolution and the step sizes again, and finds what went into the gate from the output, which out_proj holds
anyway: of each block only the projections' few columns are kept beside it. For more than 16 states the scans are
Triton's, one direction after the other.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from mambar.ops.bidirectional_mix.direction import ScanDirection
from mambar.ops.cuda.conv import conv_backward, conv_forward
from mambar.ops.cuda.scan import LARGEST_STATE, Way, add_blocks, gate_backward, scan_backward, scan_forward
from mambar.ops.selective_scan import triton as portable


def empty_saved(xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection) -> list[Tensor]:
    """The projections of both ways; in float16, whose exponents are too few to divide by the gate, its input too."""
    batch, length, both = xz.shape
    projected = xz.new_empty((2, batch, length, forward_params.x_proj.shape[0]))
    keeps = xz.dtype == torch.float16 and forward_params.sizes[1] <= LARGEST_STATE
    return [projected, xz.new_empty((batch, length, both // 2))] if keeps else [projected]


def forward(
    xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection, *, average: bool, for_backward: bool
) -> tuple[Tensor, list[Tensor]]:
    """The gated sum of both directions, halved if `average`."""
    x, z = xz.chunk(2, dim=-1)
    u = _convolve(x, forward_params, backward_params)
    projected = torch.empty((*u.shape[:3], forward_params.x_proj.shape[0]), dtype=u.dtype, device=u.device)
    for way, weights in enumerate((forward_params, backward_params)):
        torch.mm(_matrix(u[way]), weights.x_proj.t(), out=_matrix(projected[way]))
    delta = _step_sizes(projected, forward_params, backward_params)
    _, B, C = _split(projected, forward_params)
    if forward_params.sizes[1] > LARGEST_STATE:
        return _many_states(u, delta, B, C, z, forward_params, backward_params, average), [
            projected
        ] if for_backward else []
    keep = for_backward and xz.dtype == torch.float16
    out, kept = scan_forward(
        u, delta, B, C, z, _ways(forward_params, backward_params), scale=_scale(average), keep=keep
    )
    saved = [projected] if kept is None else [projected, kept]
    return out, saved if for_backward else []


def backward(
    dout: Tensor,
    xz: Tensor,
    forward_params: ScanDirection,
    backward_params: ScanDirection,
    saved: list[Tensor],
    *,
    average: bool,
) -> tuple[Tensor, ScanDirection, ScanDirection]:
    """Gradients of xz and of both directions' parameters; `saved` ends with the output."""
    projected, *kept, out = saved
    x, z = xz.chunk(2, dim=-1)
    dxz = torch.empty(xz.shape, dtype=xz.dtype, device=xz.device)
    dx, dz = dxz.chunk(2, dim=-1)
    u = _convolve(x, forward_params, backward_params)
    delta = _step_sizes(projected, forward_params, backward_params)
    low, B, C = _split(projected, forward_params)
    dprojected = torch.empty(projected.shape, dtype=projected.dtype, device=projected.device)
    dlow, dB, dC = _split(dprojected, forward_params)
    if forward_params.sizes[1] > LARGEST_STATE:
        scanned = _many_states_backward(dout, u, delta, B, C, z, forward_params, backward_params, average, dB, dC, dz)
    else:
        dy = gate_backward(dout, kept[0] if kept else out, z, dz, scale=_scale(average), gated=not kept)
        # The gradient of delta takes delta's place.
        found = scan_backward(dy, u, delta, B, C, _ways(forward_params, backward_params), ddelta=delta)
        add_blocks(found.blocks, dB, dC)
        sums = (part.unflatten(0, (2, -1)).sum(dim=1) for part in (found.A, found.D, found.bias))
        scanned = _Scanned(found.u, found.delta, *sums)

    products = []
    for way, weights in enumerate((forward_params, backward_params)):
        ddelta, du = _matrix(scanned.delta[way]), _matrix(scanned.u[way])
        torch.mm(ddelta, weights.dt_proj, out=_matrix(dlow[way]))
        ddt_proj = torch.mm(ddelta.t(), _matrix(low[way]))
        dx_proj = torch.mm(_matrix(dprojected[way]).t(), _matrix(u[way]))
        du.addmm_(_matrix(dprojected[way]), weights.x_proj)
        products.append((dx_proj, ddt_proj))
    weights = [(way.conv_weight, way.conv_bias) for way in (forward_params, backward_params)]
    convolved = conv_backward(scanned.u, x, dx, (weights[0], weights[1]), silu=True)

    gradients = [
        ScanDirection(
            conv_weight=convolved[way][0],
            conv_bias=None if weights[way][1] is None else convolved[way][1],
            x_proj=products[way][0],
            dt_proj=products[way][1],
            dt_bias=scanned.bias[way],
            A=scanned.A[way],
            D=scanned.D[way],
        )
        for way in range(2)
    ]
    return dxz, gradients[0], gradients[1]


class _Scanned(NamedTuple):
    """Gradients of the scans, each with a leading dimension for the directions."""

    u: Tensor
    delta: Tensor
    A: Tensor
    D: Tensor
    bias: Tensor


def _many_states(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor,
    forward_params: ScanDirection,
    backward_params: ScanDirection,
    average: bool,
) -> Tensor:
    """The gated sum for more states than fit in registers."""
    total = torch.zeros(z.shape, dtype=torch.float32, device=z.device)
    for way, weights in enumerate((forward_params, backward_params)):
        arguments = (u[way], delta[way], weights.A, B[way], C[way], weights.D, z, weights.dt_bias, None)
        total += portable.forward(*arguments, delta_softplus=True, reverse=way == 1, for_backward=False)[0]
    return (total * _scale(average)).to(z.dtype)


def _many_states_backward(
    dout: Tensor,
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor,
    forward_params: ScanDirection,
    backward_params: ScanDirection,
    average: bool,
    dB: Tensor,
    dC: Tensor,
    dz: Tensor,
) -> _Scanned:
    """Gradients of the same; fills dB, dC and dz. What went into the gates is computed again."""
    dout = dout * _scale(average)
    dz.zero_()
    each = []
    for way, weights in enumerate((forward_params, backward_params)):
        arguments = (u[way], delta[way], weights.A, B[way], C[way], weights.D, z, weights.dt_bias, None)
        flags = {"delta_softplus": True, "reverse": way == 1}
        _, _, kept = portable.forward(*arguments, for_backward=True, **flags)
        found = portable.backward(dout, None, *arguments, kept, **flags)
        du, ddelta, dA, from_B, from_C, dD, from_z, dbias = cast("tuple[Tensor, ...]", found[:8])
        dB[way], dC[way] = from_B, from_C
        dz += from_z
        each.append((du, ddelta, dA, dD, dbias))
    return _Scanned(*(torch.stack(parts) for parts in zip(*each, strict=True)))


def _convolve(x: Tensor, forward_params: ScanDirection, backward_params: ScanDirection) -> Tensor:
    ways = (
        (forward_params.conv_weight, forward_params.conv_bias),
        (backward_params.conv_weight, backward_params.conv_bias),
    )
    return conv_forward(x, ways, silu=True)


def _step_sizes(projected: Tensor, forward_params: ScanDirection, backward_params: ScanDirection) -> Tensor:
    """(2, batch, length, inner), before bias and softplus."""
    delta = torch.empty(
        (*projected.shape[:3], forward_params.dt_proj.shape[0]), dtype=projected.dtype, device=projected.device
    )
    low, _, _ = _split(projected, forward_params)
    for way, weights in enumerate((forward_params, backward_params)):
        torch.mm(_matrix(low[way]), weights.dt_proj.t(), out=_matrix(delta[way]))
    return delta


def _split(projected: Tensor, weights: ScanDirection) -> tuple[Tensor, Tensor, Tensor]:
    rank, state = weights.sizes
    low, B, C = projected.split([rank, state, state], dim=-1)
    return low, B, C


def _matrix(tensor: Tensor) -> Tensor:
    """(batch * length, columns), without a copy."""
    return tensor.view(-1, tensor.shape[-1])


def _ways(forward_params: ScanDirection, backward_params: ScanDirection) -> tuple[Way, Way]:
    first, second = (Way(A=way.A, D=way.D, bias=way.dt_bias) for way in (forward_params, backward_params))
    return first, second


def _scale(average: bool) -> float:
    return 0.5 if average else 1.0
