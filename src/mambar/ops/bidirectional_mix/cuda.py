"""Both directions of the mixer in CUDA C++: one convolution, one scan and one gate kernel; products by cuBLAS.

No tensor is flipped or transposed, and x and z are views of the output of in_proj. The backward recomputes the
convolution and the step sizes. It recovers the value before the gate from the output, which out_proj saves in any case,
so each block saves only the narrow projections. For more than 16 states it uses the Triton scan, one direction after
the other.
"""

from typing import cast

import torch
from torch import Tensor, nn

from mambar.ops.bidirectional_mix.direction import ScanDirection
from mambar.ops.cuda.conv import Weights, conv_backward, conv_forward
from mambar.ops.cuda.scan import (
    MAX_STATE,
    ScanParams,
    add_blocks,
    empty_states,
    gate_backward,
    scan_backward,
    scan_forward,
)
from mambar.ops.selective_scan import triton as triton_scan

Directions = tuple[ScanDirection, ScanDirection]

# Rows of 16 bytes in the narrow projections, for the fast kernels of cuBLAS and vector loads of B and C.
_ALIGNED = 8


def empty_saved(xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection) -> list[Tensor]:
    """Empty projections and states of segments; for float16 the value before the gate.

    The range of float16 is too small to divide by the gate.
    """
    batch, length, both = xz.shape
    projected = xz.new_empty((2, batch, length, forward_params.x_proj.shape[0] + _num_padding(forward_params)))
    if forward_params.sizes[1] > MAX_STATE:
        return [projected]
    shape = (batch, length, both // 2)
    states = empty_states(xz, shape, directions=2, state=forward_params.sizes[1])
    return [projected, states, xz.new_empty(shape)] if xz.dtype == torch.float16 else [projected, states]


def forward(
    xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection, *, average: bool, for_backward: bool
) -> tuple[Tensor, list[Tensor]]:
    """The gated sum of both directions, or their mean if `average`."""
    x, z = xz.chunk(2, dim=-1)
    directions = _padded(forward_params), _padded(backward_params)
    scale = 0.5 if average else 1.0
    u = conv_forward(x, _filters(directions), silu=True)
    projected = torch.empty((*u.shape[:3], directions[0].x_proj.shape[0]), dtype=u.dtype, device=u.device)
    for i, params in enumerate(directions):
        torch.mm(_matrix(u[i]), params.x_proj.t(), out=_matrix(projected[i]))
    delta = _step_sizes(projected, directions)
    _, B, C = _split(projected, directions[0])
    if forward_params.sizes[1] > MAX_STATE:
        out = _many_states(u, delta, B, C, z, directions, scale)
        return out, [projected] if for_backward else []
    states = empty_states(u, z.shape, directions=2, state=forward_params.sizes[1]) if for_backward else None
    out, pregate = scan_forward(
        *(u, delta, B, C, z, _scan_params(directions)),
        scale=scale,
        save_pregate=for_backward and xz.dtype == torch.float16,
        states=states,
    )
    return out, [each for each in (projected, states, pregate) if each is not None] if for_backward else []


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
    projected, *others, out = saved
    x, z = xz.chunk(2, dim=-1)
    dxz = torch.empty(xz.shape, dtype=xz.dtype, device=xz.device)
    dx, dz = dxz.chunk(2, dim=-1)
    directions = _padded(forward_params), _padded(backward_params)
    scale = 0.5 if average else 1.0
    u = conv_forward(x, _filters(directions), silu=True)
    delta = _step_sizes(projected, directions)
    low, B, C = _split(projected, directions[0])
    dprojected = torch.empty(projected.shape, dtype=projected.dtype, device=projected.device)
    dlow, dB, dC = _split(dprojected, directions[0])
    if forward_params.sizes[1] > MAX_STATE:
        du, ddelta, dA, dD, dbias = _many_states_backward(dout, u, delta, B, C, z, directions, scale, dB, dC, dz)
    else:
        states, *pregate = others
        dy = gate_backward(dout, pregate[0] if pregate else out, z, dz, scale=scale, gated=not pregate)
        # The gradient of delta overwrites delta.
        found = scan_backward(dy, u, delta, B, C, _scan_params(directions), ddelta=delta, states=states)
        add_blocks(found.blocks, dB, dC)
        du, ddelta = found.u, found.delta
        dA, dD, dbias = (part.unflatten(0, (2, -1)).sum(dim=1) for part in (found.A, found.D, found.bias))

    products = []
    for i, params in enumerate(directions):
        torch.mm(_matrix(ddelta[i]), params.dt_proj, out=_matrix(dlow[i]))
        ddt_proj = torch.mm(_matrix(ddelta[i]).t(), _matrix(low[i]))
        dx_proj = torch.mm(_matrix(dprojected[i]).t(), _matrix(u[i]))
        _matrix(du[i]).addmm_(_matrix(dprojected[i]), params.x_proj)
        products.append(_without_padding(dx_proj, ddt_proj, forward_params))
    convolved = conv_backward(du, x, dx, _filters(directions), silu=True)

    gradients = [
        ScanDirection(
            conv_weight=dweight,
            conv_bias=None if params.conv_bias is None else dconv_bias,
            x_proj=dx_proj,
            dt_proj=ddt_proj,
            dt_bias=dbias[i],
            A=dA[i],
            D=dD[i],
        )
        for i, (params, (dweight, dconv_bias), (dx_proj, ddt_proj)) in enumerate(
            zip(directions, convolved, products, strict=True)
        )
    ]
    return dxz, gradients[0], gradients[1]


def _many_states(u, delta, B, C, z, directions: Directions, scale: float) -> Tensor:
    """The gated sum for more states than fit in registers, with the Triton scan."""
    total = torch.zeros(z.shape, dtype=torch.float32, device=z.device)
    for i, params in enumerate(directions):
        arguments = (u[i], delta[i], params.A, B[i], C[i], params.D, z, params.dt_bias, None)
        total += triton_scan.forward(*arguments, delta_softplus=True, reverse=i == 1, for_backward=False)[0]
    return (total * scale).to(z.dtype)


def _many_states_backward(
    dout, u, delta, B, C, z, directions: Directions, scale: float, dB, dC, dz
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, D and the bias; fills dB, dC and dz. The values before the gates are recomputed."""
    dout = dout * scale
    dz.zero_()
    each = []
    for i, params in enumerate(directions):
        arguments = (u[i], delta[i], params.A, B[i], C[i], params.D, z, params.dt_bias, None)
        flags = {"delta_softplus": True, "reverse": i == 1}
        _, _, pregate = triton_scan.forward(*arguments, for_backward=True, **flags)
        found = triton_scan.backward(dout, None, *arguments, pregate, **flags)
        du, ddelta, dA, from_B, from_C, dD, from_z, dbias = cast("tuple[Tensor, ...]", found[:8])
        dB[i], dC[i] = from_B, from_C
        dz += from_z
        each.append((du, ddelta, dA, dD, dbias))
    return tuple(torch.stack(parts) for parts in zip(*each, strict=True))


def _num_padding(params: ScanDirection) -> int:
    return -params.dt_proj.shape[1] % _ALIGNED


def _padded(params: ScanDirection) -> ScanDirection:
    """The parameters with a dt_rank that is a multiple of 8; the added ranks are zero (dt_rank of Tiny is 12)."""
    rank, more = params.dt_proj.shape[1], _num_padding(params)
    if not more:
        return params
    low, columns = params.x_proj[:rank], params.x_proj[rank:]
    x_proj = torch.cat([low, low.new_zeros((more, low.shape[1])), columns])
    return params._replace(x_proj=x_proj, dt_proj=nn.functional.pad(params.dt_proj, (0, more)))


def _without_padding(dx_proj: Tensor, ddt_proj: Tensor, params: ScanDirection) -> tuple[Tensor, Tensor]:
    """The gradients of the weights of `params` from those of `_padded(params)`."""
    rank, more = params.dt_proj.shape[1], _num_padding(params)
    if not more:
        return dx_proj, ddt_proj
    return torch.cat([dx_proj[:rank], dx_proj[rank + more :]]), ddt_proj[:, :rank].contiguous()


def _filters(directions: Directions) -> tuple[Weights, ...]:
    return tuple((params.conv_weight, params.conv_bias) for params in directions)


def _step_sizes(projected: Tensor, directions: Directions) -> Tensor:
    """Step sizes before bias and softplus, (2, batch, length, d_inner)."""
    shape = (*projected.shape[:3], directions[0].dt_proj.shape[0])
    delta = torch.empty(shape, dtype=projected.dtype, device=projected.device)
    low, _, _ = _split(projected, directions[0])
    for i, params in enumerate(directions):
        torch.mm(_matrix(low[i]), params.dt_proj.t(), out=_matrix(delta[i]))
    return delta


def _split(projected: Tensor, params: ScanDirection) -> tuple[Tensor, Tensor, Tensor]:
    rank, state = params.sizes
    low, B, C = projected.split([rank, state, state], dim=-1)
    return low, B, C


def _matrix(tensor: Tensor) -> Tensor:
    """A view as (batch * length, columns)."""
    return tensor.view(-1, tensor.shape[-1])


def _scan_params(directions: Directions) -> tuple[ScanParams, ...]:
    return tuple(ScanParams(A=params.A, D=params.D, bias=params.dt_bias) for params in directions)
