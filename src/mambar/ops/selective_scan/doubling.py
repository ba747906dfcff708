"""The selective scan in log2(length) rounds of plain operations: for export, compile and any device."""

import torch
from torch import Tensor

from mambar.ops.selective_scan.reference import skip_and_gate, step_sizes


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
    """The output in the type of `u`, and the state after the last step; see `reference`.

    Every position holds the pair (decay, state) of a run of steps that ends there, and a round joins each run
    with the one before it, which doubles their length (Hillis and Steele). Decays are only ever multiplied,
    never divided: the shorter form exp(cumsum) overflows. Each round holds (batch, length, inner, state)
    values, so memory is what it costs.
    """
    length = u.shape[1]
    dt = step_sizes(delta, delta_bias, A.dtype, delta_softplus)
    decay = torch.exp(dt[..., None] * A)  # (batch, length, inner, state)
    states = (dt * u)[..., None] * B[:, :, None, :].to(A.dtype)
    shift = 1
    while shift < length:
        decay, states = _join(decay, states, shift, reverse)
        shift *= 2
    if initial_state is None and length == 1:
        # One step joins nothing: without this A would have no gradient, which stops training on several processes.
        initial_state = torch.zeros_like(states[:, 0])
    if initial_state is not None:
        states = states + decay * initial_state[:, None]
    y = (states * C[:, :, None, :]).sum(dim=-1)
    return skip_and_gate(y, u, D, z), states[:, 0 if reverse else length - 1].contiguous()


def _join(decay: Tensor, states: Tensor, shift: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """Each run joined with the one that ends `shift` steps before its own end; the first runs have none."""
    length = decay.shape[1]
    if reverse:
        begun, ending, before = slice(length - shift, None), slice(None, length - shift), slice(shift, None)
    else:
        begun, ending, before = slice(None, shift), slice(shift, None), slice(None, length - shift)
    joined_states = states[:, ending] + decay[:, ending] * states[:, before]
    joined_decay = decay[:, ending] * decay[:, before]
    halves = [(decay[:, begun], states[:, begun]), (joined_decay, joined_states)]
    first, second = reversed(halves) if reverse else halves
    return torch.cat([first[0], second[0]], dim=1), torch.cat([first[1], second[1]], dim=1)
