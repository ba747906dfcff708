"""The selective scan by its definition: a loop over time, for any floating-point type, twice differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mambar.ops.checks import as_dtype


def selective_scan(
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
) -> tuple[Tensor, Tensor]:
    """The output in the type of `u`, and the state after the last step.

    The state equation is `h[t] = exp(dt A) h[t-1] + dt B u[t]`, the output `y[t] = C h[t] + D u[t]`, gated by
    `silu(z[t])`. `reverse` scans from the last position to the first. Everything is computed in the type of `A`.
    """
    batch, length, d_inner = u.shape
    dt = step_sizes(delta, delta_bias, A.dtype, delta_softplus)
    inputs = dt * u  # (batch, length, d_inner)
    state = u.new_zeros(batch, d_inner, A.shape[1], dtype=A.dtype) if initial_state is None else initial_state
    outputs = []
    for t in reversed(range(length)) if reverse else range(length):
        decay = torch.exp(dt[:, t, :, None] * A)  # (batch, d_inner, d_state)
        state = decay * state + inputs[:, t, :, None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(dim=-1))  # (batch, d_inner)
    y = torch.stack(outputs[::-1] if reverse else outputs, dim=1)
    return skip_and_gate(y, u, D, z), state


def step_sizes(delta: Tensor, delta_bias: Tensor | None, dtype: torch.dtype, delta_softplus: bool) -> Tensor:
    """The step sizes dt (batch, length, d_inner) in this type: bias, then softplus (the identity above 20)."""
    dt = as_dtype(delta, dtype)
    if delta_bias is not None:
        dt = dt + delta_bias
    return F.softplus(dt) if delta_softplus else dt


def skip_and_gate(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """`(y + D u) silu(z)`, computed in the type of `y`, returned in that of `u`."""
    if D is not None:
        y = torch.addcmul(y, as_dtype(u, y.dtype), D)
    if z is not None:
        y = y * F.silu(as_dtype(z, y.dtype))
    return as_dtype(y, u.dtype)
