"""The scan in CUDA C++, compiled at the first use; the states of a channel stay in registers.

For more than 16 states it uses the Triton kernels.
"""

import torch
from torch import Tensor

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


def empty_saved(u, delta, A, B, C, D, z, delta_bias, initial_state) -> list[Tensor]:
    """Empty states of segments; with a gate, the value before it, which its gradient needs."""
    if A.shape[1] > MAX_STATE:
        return triton_scan.empty_saved(u, delta, A, B, C, D, z, delta_bias, initial_state)
    states = empty_states(u, u.shape, directions=1, state=A.shape[1])
    return [states] if z is None else [states, u.new_empty(u.shape)]


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, *, delta_softplus, reverse, for_backward
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The output, the last state, and what `empty_saved` allocates."""
    if A.shape[1] > MAX_STATE:
        tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
        return triton_scan.forward(*tensors, delta_softplus=delta_softplus, reverse=reverse, for_backward=for_backward)
    last_state = torch.empty((u.shape[0], *A.shape), dtype=torch.float32, device=u.device)
    states = empty_states(u, u.shape, directions=1, state=A.shape[1]) if for_backward else None
    y, pregate = scan_forward(
        *(u, delta, B, C, z, (ScanParams(A=A, D=D, bias=delta_bias),)),
        initial=initial_state,
        last=last_state,
        softplus=delta_softplus,
        reverse=reverse,
        save_pregate=for_backward and z is not None,
        states=states,
    )
    return y, last_state, [each for each in (states, pregate) if each is not None]


def backward(
    dy, dstate, u, delta, A, B, C, D, z, delta_bias, initial_state, saved, *, delta_softplus, reverse
) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments, in their order."""
    if A.shape[1] > MAX_STATE:
        tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
        return triton_scan.backward(dy, dstate, *tensors, saved, delta_softplus=delta_softplus, reverse=reverse)
    states, *pregate = saved
    dz = None
    if z is not None:
        dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        dy = gate_backward(dy, pregate[0], z, dz, scale=1.0, gated=False)
    gradients = scan_backward(
        *(dy, u, delta, B, C, (ScanParams(A=A, D=D, bias=delta_bias),)),
        states=states,
        initial=initial_state,
        dlast=dstate,
        softplus=delta_softplus,
        reverse=reverse,
    )
    dB, dC = (torch.empty(B.shape, dtype=B.dtype, device=B.device) for _ in range(2))
    add_blocks(gradients.blocks, dB, dC)
    return (
        gradients.u,
        gradients.delta,
        gradients.A.sum(dim=0),
        dB,
        dC,
        None if D is None else gradients.D.sum(dim=0),
        dz,
        None if delta_bias is None else gradients.bias.sum(dim=0),
        gradients.initial,
    )
