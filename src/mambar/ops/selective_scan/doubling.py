"""The selective scan in about 2 log2(length) rounds of plain operations: for export, compile and any device."""

import torch
import torch.nn.functional as F
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

    Two steps in a row are one step with the product of their decays. Joining neighbours halves the sequence, again and
    again, and on the way back every second state follows from the one before it (Blelloch). Decays are only ever
    multiplied, never divided: the shorter form exp(cumsum) overflows. Every round holds (steps, inner, state) values:
    memory is what it costs.
    """
    dt = step_sizes(delta, delta_bias, A.dtype, delta_softplus)
    decays = torch.exp(dt[..., None] * A)  # (batch, length, inner, state)
    inputs = (dt * u)[..., None] * B[:, :, None, :]
    if initial_state is None and u.shape[1] == 1:
        # One step joins nothing: without this A would have no gradient, which stops training on several processes.
        initial_state = torch.zeros_like(inputs[:, 0])
    if initial_state is not None:
        inputs = _with_start(decays, inputs, initial_state[:, None], reverse)
    states = _states(decays, inputs, reverse)
    y = (states * C[:, :, None, :]).sum(dim=-1)
    return skip_and_gate(y, u, D, z), states[:, 0 if reverse else -1].contiguous()


def _with_start(decays: Tensor, inputs: Tensor, state: Tensor, reverse: bool) -> Tensor:
    """The inputs with what the first step keeps of an initial state (batch, 1, inner, state)."""
    if reverse:
        return torch.cat([inputs[:, :-1], inputs[:, -1:] + decays[:, -1:] * state], dim=1)
    return torch.cat([inputs[:, :1] + decays[:, :1] * state, inputs[:, 1:]], dim=1)


def _states(decays: Tensor, inputs: Tensor, reverse: bool) -> Tensor:
    """All states (batch, steps, inner, state) of `h = decay h + input` from zero, walked in either direction."""
    steps = inputs.shape[1]
    if steps == 1:
        return inputs
    # Counted along the walk, steps are firsts and seconds in turn; an odd number ends with a first that is alone.
    alone = steps % 2
    if reverse:
        firsts, paired, seconds = slice(1 - alone, None, 2), slice(1 + alone, None, 2), slice(alone, None, 2)
    else:
        firsts, paired, seconds = slice(0, None, 2), slice(0, steps - alone, 2), slice(1, None, 2)
    second_decays = decays[:, seconds]
    joined_inputs = torch.addcmul(inputs[:, seconds], second_decays, inputs[:, paired])
    second_states = _states(second_decays * decays[:, paired], joined_inputs, reverse)
    before = _padded(second_states, alone - 1, 1) if reverse else _padded(second_states, 1, alone - 1)
    first_states = torch.addcmul(inputs[:, firsts], decays[:, firsts], before)
    if not alone:
        order = [second_states, first_states] if reverse else [first_states, second_states]
        return torch.stack(order, dim=2).flatten(1, 2)
    return torch.stack([first_states, _padded(second_states, 0, 1)], dim=2).flatten(1, 2)[:, :steps]


def _padded(states: Tensor, ahead: int, behind: int) -> Tensor:
    """The states with so many zeros before and behind them in time; below zero some are cut off instead."""
    return F.pad(states, (0, 0, 0, 0, ahead, behind))
