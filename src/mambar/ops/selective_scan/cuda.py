"""The scan in CUDA C++, compiled at first use: all states of a channel in registers, time in order.

For more than 16 states the portable Triton kernels take over.
"""

import torch
from torch import Tensor

from mambar.ops.cuda.scan import LARGEST_STATE, Way, add_blocks, gate_backward, scan_backward, scan_forward
from mambar.ops.selective_scan import triton as portable


def empty_saved(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> list[Tensor]:
    """With a gate: what went into it, which its gradient needs."""
    if A.shape[1] > LARGEST_STATE:
        return portable.empty_saved(u, delta, A, B, C, D, z, delta_bias, initial_state)
    return [] if z is None else [u.new_empty(u.shape)]


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    *,
    delta_softplus: bool,
    reverse: bool,
    for_backward: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The output, the last state, and for the backward what went into the gate."""
    if A.shape[1] > LARGEST_STATE:
        tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
        return portable.forward(*tensors, delta_softplus=delta_softplus, reverse=reverse, for_backward=for_backward)
    last_state = torch.empty((u.shape[0], *A.shape), dtype=torch.float32, device=u.device)
    y, kept = scan_forward(
        *(u, delta, B, C, z, (Way(A=A, D=D, bias=delta_bias),)),
        initial=initial_state,
        last=last_state,
        softplus=delta_softplus,
        reverse=reverse,
        keep=for_backward and z is not None,
    )
    return y, last_state, [] if kept is None else [kept]


def backward(
    dy: Tensor,
    dstate: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    saved: list[Tensor],
    *,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments, in their order."""
    if A.shape[1] > LARGEST_STATE:
        tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
        return portable.backward(dy, dstate, *tensors, saved, delta_softplus=delta_softplus, reverse=reverse)
    dz = None
    if z is not None:
        dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        dy = gate_backward(dy, saved[0], z, dz, scale=1.0, gated=False)
    found = scan_backward(
        *(dy, u, delta, B, C, (Way(A=A, D=D, bias=delta_bias),)),
        initial=initial_state,
        dlast=dstate,
        softplus=delta_softplus,
        reverse=reverse,
    )
    dB, dC = (torch.empty(B.shape, dtype=B.dtype, device=B.device) for _ in range(2))
    add_blocks(found.blocks, dB, dC)
    return (
        found.u,
        found.delta,
        found.A.sum(dim=0),
        dB,
        dC,
        None if D is None else found.D.sum(dim=0),
        dz,
        None if delta_bias is None else found.bias.sum(dim=0),
        found.initial,
    )
