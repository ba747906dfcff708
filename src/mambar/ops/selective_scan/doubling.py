"""The selective scan in about 2 log2(length) rounds of plain operations: for export, compile and any device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mambar.ops.selective_scan.reference import skip_and_gate, step_sizes


def selective_scan(
    u, delta, A, B, C, D, z, delta_bias, initial_state, *, delta_softplus, reverse
) -> tuple[Tensor, Tensor]:
    """The output in the type of `u`, and the state after the last step; see `reference`.

    Two consecutive steps are one step with the product of their decays. Each round joins neighbours, which halves the
    sequence; on the way back every second state follows from the one before it (Blelloch). Decays are multiplied, never
    divided, because the shorter form exp(cumsum) overflows. Each round stores (steps, d_inner, d_state) values.
    """
    dt = step_sizes(delta, delta_bias, A.dtype, delta_softplus)
    decays = torch.exp(dt[..., None] * A)  # (batch, length, d_inner, d_state)
    inputs = (dt * u)[..., None] * B[:, :, None, :]
    if initial_state is None and u.shape[1] == 1:
        # A single step would not use A. Without a gradient of A, training on several processes stops.
        initial_state = torch.zeros_like(inputs[:, 0])
    if initial_state is not None:
        inputs = _with_start(decays, inputs, initial_state[:, None], reverse)
    states = _states(decays, inputs, reverse)
    y = (states * C[:, :, None, :]).sum(dim=-1)
    return skip_and_gate(y, u, D, z), states[:, 0 if reverse else -1].contiguous()


def _with_start(decays: Tensor, inputs: Tensor, state: Tensor, reverse: bool) -> Tensor:
    """The inputs, plus the decayed initial state (batch, 1, d_inner, d_state) in the first step."""
    if reverse:
        return torch.cat([inputs[:, :-1], inputs[:, -1:] + decays[:, -1:] * state], dim=1)
    return torch.cat([inputs[:, :1] + decays[:, :1] * state, inputs[:, 1:]], dim=1)


def _states(decays: Tensor, inputs: Tensor, reverse: bool) -> Tensor:
    """All states (batch, steps, d_inner, d_state) of `h = decay h + input` from zero, in either direction."""
    steps = inputs.shape[1]
    if steps == 1:
        return inputs
    # In scan order, steps alternate between first and second of a pair; an odd number leaves a last step unpaired.
    unpaired = steps % 2
    if reverse:
        firsts, paired, seconds = slice(1 - unpaired, None, 2), slice(1 + unpaired, None, 2), slice(unpaired, None, 2)
    else:
        firsts, paired, seconds = slice(0, None, 2), slice(0, steps - unpaired, 2), slice(1, None, 2)
    second_decays = decays[:, seconds]
    joined_inputs = torch.addcmul(inputs[:, seconds], second_decays, inputs[:, paired])
    second_states = _states(second_decays * decays[:, paired], joined_inputs, reverse)
    # The state before each first step: zero before the sequence, else that of the second step of the pair before it.
    # The last second step of complete pairs is cut by a slice, because ExecuTorch takes no negative padding.
    if reverse:
        before = _padded(second_states[:, 1 - unpaired :], 0, 1)
    else:
        before = _padded(second_states[:, : steps // 2 - 1 + unpaired], 1, 0)
    first_states = torch.addcmul(inputs[:, firsts], decays[:, firsts], before)
    if not unpaired:
        order = [second_states, first_states] if reverse else [first_states, second_states]
        return torch.stack(order, dim=2).flatten(1, 2)
    return torch.stack([first_states, _padded(second_states, 0, 1)], dim=2).flatten(1, 2)[:, :steps]


def _padded(states: Tensor, before: int, after: int) -> Tensor:
    """The states with this many zeros before and after them in time."""
    return F.pad(states, (0, 0, 0, 0, before, after))
