"""The selective scan for eager CPUs in plain PyTorch: a few steps at a time, in buffers that fit the cache.

A tile is a few batch items and channels; a chunk is a few steps of a tile. For one chunk, the decays
`exp(dt A)` and the inputs `dt u B` take one call each. Then a step of the recurrence is one in-place
multiply-add that turns the inputs into the states, and `C h` is one matrix product. The states before each chunk are
saved for the backward pass, which recomputes the others. Nothing of size (batch, length, d_inner, d_state) is stored.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mambar.ops.derivatives import needs_reference, reference_gradients
from mambar.ops.selective_scan import reference
from mambar.ops.selective_scan.reference import step_sizes

# Measured for float32 on CPUs with 1 to 2 MB of second-level cache. A call computes the states of one step of a tile.
# In smaller tiles the calls dominate; in larger ones the buffers of a chunk (two in the forward pass, four in the
# backward pass) exceed the cache. A chunk of the backward pass is a whole number of chunks of the forward pass.
STEPS, TILE_VALUES = 4, 24 * 1024
BACKWARD_STEPS, BACKWARD_TILE_VALUES = 16, 12 * 1024


class _Inputs(NamedTuple):
    """The tensors of a scan; absent ones are None."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None


def selective_scan(
    u, delta, A, B, C, D, z, delta_bias, initial_state, *, delta_softplus, reverse
) -> tuple[Tensor, Tensor]:
    """The output in the type of `u`, and the state after the last step; see `reference`."""
    inputs = _Inputs(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _ChunkedScan.apply(delta_softplus, reverse, *inputs)
    y, state, _ = _forward(inputs, delta_softplus, reverse, checkpoint=False)
    return y, state


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, delta_softplus: bool, reverse: bool, *tensors: Any) -> tuple[Tensor, Tensor]:
        inputs = _Inputs(*tensors)
        y, state, checkpoints = _forward(inputs, delta_softplus, reverse, checkpoint=True)
        ctx.save_for_backward(*inputs, checkpoints)
        ctx.delta_softplus, ctx.reverse = delta_softplus, reverse
        ctx.set_materialize_grads(False)
        return y, state

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:  # type: ignore[override]
        (dy, dstate), (*tensors, checkpoints) = grad_outputs, ctx.saved_tensors
        if needs_reference(dy, dstate):
            scan = partial(reference.selective_scan, delta_softplus=ctx.delta_softplus, reverse=ctx.reverse)
            return None, None, *reference_gradients(scan, tensors, (dy, dstate))
        inputs = _Inputs(*tensors)
        dy = torch.zeros_like(inputs.u) if dy is None else dy
        return None, None, *_backward(dy, dstate, inputs, checkpoints, ctx.delta_softplus, ctx.reverse)


class _Chunk(NamedTuple):
    """The positions of a few steps of a tile, and views of the operands in the shapes that the calls need."""

    times: slice
    dt: Tensor
    drive: Tensor
    B: Tensor
    C: Tensor
    output: Tensor


class _Tile:
    """Some batch items and channels of a scan, with the buffers of one chunk.

    Time is the first dimension and channels the last, (length, items, [d_state,] d_inner), so that a chunk and each
    step of it are contiguous, and vector instructions run over channels. Views are created once, because that takes as
    long as a short sum.
    """

    def __init__(self, inputs: _Inputs, items: slice, channels: slice, delta_softplus: bool, steps: int) -> None:
        A = inputs.A[channels]
        bias = None if inputs.delta_bias is None else inputs.delta_bias[channels]
        self.u = inputs.u[items, :, channels].transpose(0, 1).to(A.dtype)
        self.delta = step_sizes(inputs.delta[items, :, channels], bias, A.dtype, False).transpose(0, 1)
        self.dt = (F.softplus(self.delta) if delta_softplus else self.delta).contiguous()
        self.drive = self.dt * self.u
        self.B = inputs.B[items].transpose(0, 1).to(A.dtype).contiguous()
        self.C = inputs.C[items].transpose(0, 1).to(A.dtype).contiguous()
        self.output = torch.empty_like(self.dt)
        # On CUDA, exp2 compiles to the approximate instruction ex2.approx, whose errors accumulate over the steps.
        self.power, scale = (torch.exp2, math.log2(math.e)) if A.device.type == "cpu" else (torch.exp, 1.0)
        self.rates = (A * scale).t().contiguous()
        self.state = A.new_zeros(self.dt.shape[1], *self.rates.shape)
        if inputs.initial_state is not None:
            self.state.copy_(inputs.initial_state[items, channels].transpose(1, 2))
        self.steps = min(steps, len(self.dt))
        self.decays, self.states = self.buffer(), self.buffer()
        self.pairs = list(zip(self.decays.unbind(), self.states.unbind(), strict=True))

    def buffer(self) -> Tensor:
        """An empty buffer for the decays, states or gradients of one chunk (steps, items, d_state, d_inner)."""
        return self.state.new_empty(self.steps, *self.state.shape)

    def chunks(self, *, backwards: bool) -> list[_Chunk]:
        """The chunks, in order of time or backwards."""
        length, items, _ = self.dt.shape
        views = (
            self.dt.unsqueeze(2).split(self.steps),
            self.drive.unsqueeze(2).split(self.steps),
            self.B.unsqueeze(3).split(self.steps),
            self.C.flatten(0, 1).unsqueeze(1).split(self.steps * items),
            self.output.flatten(0, 1).unsqueeze(1).split(self.steps * items),
        )
        times = [slice(t, min(t + self.steps, length)) for t in range(0, length, self.steps)]
        chunks = [_Chunk(*parts) for parts in zip(times, *views, strict=True)]
        return chunks[::-1] if backwards else chunks

    def scan_chunk(self, chunk: _Chunk, state: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        """The decays and states of a chunk that starts from this state; also writes the output of the chunk."""
        steps = len(chunk.dt)
        whole = steps == self.steps
        decays, states = (self.decays, self.states) if whole else (self.decays[:steps], self.states[:steps])
        self.power(torch.mul(chunk.dt, self.rates, out=decays), out=decays)
        torch.mul(chunk.drive, chunk.B, out=states)
        for decay, here in self.pairs[steps - 1 :: -1] if reverse else self.pairs[:steps]:
            state = here.addcmul_(decay, state)
        torch.bmm(chunk.C, states.flatten(0, 1), out=chunk.output)
        return decays, states


def _tiles(inputs: _Inputs, values: int) -> Iterator[tuple[slice, slice]]:
    """The batch items and channels of each tile; a single tile on devices other than CPUs."""
    batch, _, d_inner = inputs.u.shape
    items, channels = batch, d_inner
    if inputs.u.device.type == "cpu":
        parts = -(-d_inner * inputs.A.shape[1] // values)
        channels = -(-d_inner // parts)
        items = max(1, values // (channels * inputs.A.shape[1]))
    for item in range(0, batch, items):
        for channel in range(0, d_inner, channels):
            yield slice(item, min(item + items, batch)), slice(channel, min(channel + channels, d_inner))


def _forward(
    inputs: _Inputs, delta_softplus: bool, reverse: bool, *, checkpoint: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the last state, and with `checkpoint` the states before each chunk of the backward pass.

    The latter are (chunks, batch, d_state, d_inner); "before" is meant in scan order.
    """
    u, A, D, z = inputs.u, inputs.A, inputs.D, inputs.z
    batch, length, _ = u.shape
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    last_state = A.new_empty(batch, *A.shape)
    checkpoints = A.new_empty(-(-length // BACKWARD_STEPS) if checkpoint else 0, batch, *A.t().shape)
    with torch.no_grad(), torch.autocast(u.device.type, enabled=False):
        for items, channels in _tiles(inputs, TILE_VALUES):
            tile = _Tile(inputs, items, channels, delta_softplus, STEPS)
            kept = None
            for chunk in tile.chunks(backwards=reverse):
                number = chunk.times.start // BACKWARD_STEPS
                if checkpoint and number != kept:
                    checkpoints[number, items, :, channels] = tile.state
                    kept = number
                _, states = tile.scan_chunk(chunk, tile.state, reverse)
                tile.state.copy_(states[0 if reverse else -1])
            last_state[items, channels] = tile.state.transpose(1, 2)
            if D is not None:
                tile.output.addcmul_(tile.u, D[channels])
            y_tile = y[items, :, channels].transpose(0, 1)
            if z is None:
                y_tile.copy_(tile.output)
            else:
                gate = F.silu(z[items, :, channels].transpose(0, 1).to(A.dtype))
                torch.mul(tile.output, gate, out=y_tile)
    return y, last_state, checkpoints


def _backward(
    dy: Tensor, dstate: Tensor | None, inputs: _Inputs, checkpoints: Tensor, delta_softplus: bool, reverse: bool
) -> list[Tensor | None]:
    """The gradients of all inputs; None for absent inputs."""
    given = {name: tensor for name, tensor in inputs._asdict().items() if tensor is not None}
    gradients = {name: tensor.new_zeros(tensor.shape, dtype=inputs.A.dtype) for name, tensor in given.items()}
    with torch.autocast(dy.device.type, enabled=False):
        for items, channels in _tiles(inputs, BACKWARD_TILE_VALUES):
            tile = _Tile(inputs, items, channels, delta_softplus, BACKWARD_STEPS)
            back = _BackwardTile(tile, inputs, items, channels, dy)
            if dstate is not None:
                back.dstate.copy_(dstate[items, channels].transpose(1, 2))
            for chunk in tile.chunks(backwards=not reverse):
                number = chunk.times.start // BACKWARD_STEPS
                back.add_chunk(chunk, checkpoints[number, items, :, channels], reverse)
            back.add_to(gradients, items, channels, inputs.D, delta_softplus)
    return [gradients[name].to(given[name].dtype) if name in given else None for name in _Inputs._fields]


class _BackwardTile:
    """A tile with the operands and results of the backward pass."""

    def __init__(self, tile: _Tile, inputs: _Inputs, items: slice, channels: slice, dy: Tensor) -> None:
        self.tile = tile
        self.A = inputs.A[channels].t().contiguous()
        self.dgated = self.dy = dy[items, :, channels].transpose(0, 1).to(self.A.dtype).contiguous()
        self.z = None
        if inputs.z is not None:
            self.z = inputs.z[items, :, channels].transpose(0, 1).to(self.A.dtype)
            self.dy = self.dgated * F.silu(self.z)
        self.decayed, self.dstates = tile.buffer(), tile.buffer()
        self.pairs = list(zip(tile.decays.unbind(), self.dstates.unbind(), strict=True))
        self.dstate = torch.zeros_like(tile.state)
        self.dB, self.dC = torch.empty_like(tile.B), torch.empty_like(tile.C)
        self.ddt, self.ddrive = torch.empty_like(tile.dt), torch.empty_like(tile.dt)
        self.dA = torch.zeros_like(self.A)

    def add_chunk(self, chunk: _Chunk, state: Tensor, reverse: bool) -> None:
        """Adds the gradients of one chunk that starts from this state; `dstate` is the gradient of its last state."""
        tile, times = self.tile, chunk.times
        decays, states = tile.scan_chunk(chunk, state, reverse)
        steps = len(states)
        # The part of each state that comes from the one before it: decay times state. Only this depends on the decays.
        decayed = self.decayed[:steps]
        if reverse:
            torch.mul(decays[:-1], states[1:], out=decayed[:-1])
            torch.mul(decays[-1], state, out=decayed[-1])
        else:
            torch.mul(decays[1:], states[:-1], out=decayed[1:])
            torch.mul(decays[0], state, out=decayed[0])
        dstates = self.dstates[:steps]
        torch.mul(self.dy[times, :, None], tile.C[times, :, :, None], out=dstates)
        (decay, later), *earlier = self.pairs[:steps] if reverse else self.pairs[steps - 1 :: -1]
        later.add_(self.dstate)
        for next_decay, here in earlier:
            later, decay = here.addcmul_(decay, later), next_decay
        torch.mul(decay, later, out=self.dstate)
        _sum_over_channels(states, self.dy[times], self.dC[times])
        _sum_over_channels(dstates, tile.drive[times], self.dB[times])
        _sum_over_states(tile.B[times], dstates, self.ddrive[times])
        decayed.mul_(dstates)
        torch.sum(torch.mul(decayed, self.A, out=dstates), dim=2, out=self.ddt[times])
        self.dA += decayed.mul_(chunk.dt).sum(dim=(0, 1))

    def add_to(
        self, gradients: dict[str, Tensor], items: slice, channels: slice, D: Tensor | None, softplus: bool
    ) -> None:
        """Adds the gradients of this tile to those of the whole scan."""
        tile = self.tile
        du = self.ddrive * tile.dt
        if D is not None:
            du.addcmul_(self.dy, D[channels])
            gradients["D"][channels] += (self.dy * tile.u).sum(dim=(0, 1))
            tile.output.addcmul_(tile.u, D[channels])
        if self.z is not None:
            dz = torch.ops.aten.silu_backward(self.dgated * tile.output, self.z)
            gradients["z"][items, :, channels] = dz.transpose(0, 1)
        ddelta = self.ddt.addcmul_(self.ddrive, tile.u)
        if softplus:
            ddelta = torch.ops.aten.softplus_backward(ddelta, tile.delta, 1, 20)
        if "delta_bias" in gradients:
            gradients["delta_bias"][channels] += ddelta.sum(dim=(0, 1))
        if "initial_state" in gradients:
            gradients["initial_state"][items, channels] = self.dstate.transpose(1, 2)
        gradients["u"][items, :, channels] = du.transpose(0, 1)
        gradients["delta"][items, :, channels] = ddelta.transpose(0, 1)
        gradients["A"][channels] += self.dA.t()
        gradients["B"][items] += self.dB.transpose(0, 1)
        gradients["C"][items] += self.dC.transpose(0, 1)


def _sum_over_states(weights: Tensor, values: Tensor, out: Tensor) -> None:
    """Writes weights (steps, items, d_state) times values (steps, items, d_state, d_inner), summed over states."""
    torch.bmm(weights.flatten(0, 1).unsqueeze(1), values.flatten(0, 1), out=out.flatten(0, 1).unsqueeze(1))


def _sum_over_channels(values: Tensor, weights: Tensor, out: Tensor) -> None:
    """Writes values (steps, items, d_state, d_inner) times weights (steps, items, d_inner), summed over channels."""
    torch.bmm(values.flatten(0, 1), weights.flatten(0, 1).unsqueeze(2), out=out.flatten(0, 1).unsqueeze(2))
