"""The selective scan for eager CPUs in plain PyTorch: a few steps at a time, in buffers that stay in the cache.

A tile is a few batch items and channels; a chunk is a few steps of it. For one chunk the decays `exp2(dt A
log2(e))` and the inputs `dt u B` are each one call, after which a step of the recurrence is one in-place
multiply-add that turns the inputs into the states, and `C h` is one product of matrices. The states before
each chunk are kept for the backward pass, which computes the others again; nothing of size (batch, length,
inner, state) is.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambar.ops.selective_scan.reference import step_sizes

# Measured for float32 on CPUs with 1 to 2 MB of second-level cache. A call works on the states of one step of a tile:
# with fewer it is the calls that cost, with more the buffers of a chunk (two forward, four backward) leave the cache.
# Whole chunks of the forward pass make up one of the backward pass.
STEPS, TILE_VALUES = 4, 24 * 1024
BACKWARD_STEPS, BACKWARD_TILE_VALUES = 16, 12 * 1024


class _Inputs(NamedTuple):
    """The tensors of a scan; what is absent is None."""

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
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:  # type: ignore[override]
        (dy, dstate), (*tensors, checkpoints) = grad_outputs, ctx.saved_tensors
        inputs = _Inputs(*tensors)
        dy = torch.zeros_like(inputs.u) if dy is None else dy
        return None, None, *_backward(dy, dstate, inputs, checkpoints, ctx.delta_softplus, ctx.reverse)


class _Chunk(NamedTuple):
    """A few steps of a tile: which, and views of the operands, shaped for the calls that read them."""

    times: slice
    dt: Tensor
    drive: Tensor
    B: Tensor
    C: Tensor
    output: Tensor


class _Tile:
    """Some batch items and channels of a scan, with the buffers of one chunk.

    Time comes first and channels last, (length, items, [state,] inner): a chunk is contiguous memory, one
    step of it too, and channels are the lanes of every vector instruction. Views are made once, as a view
    costs as much as a short sum.
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
        self.rates = (A * math.log2(math.e)).t().contiguous()
        self.state = A.new_zeros(self.dt.shape[1], *self.rates.shape)
        if inputs.initial_state is not None:
            self.state.copy_(inputs.initial_state[items, channels].transpose(1, 2))
        self.steps = min(steps, len(self.dt))
        self.decays, self.states = self.buffer(), self.buffer()
        self.pairs = list(zip(self.decays.unbind(), self.states.unbind(), strict=True))

    def buffer(self) -> Tensor:
        """Room for one chunk of decays, states or gradients (steps, items, state, inner)."""
        return self.state.new_empty(self.steps, *self.state.shape)

    def chunks(self, *, backwards: bool) -> list[_Chunk]:
        """The chunks, from the first or from the last."""
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

    def walk(self, chunk: _Chunk, state: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        """The decays and states of a chunk that starts from this state, in two buffers; its output is written."""
        steps = len(chunk.dt)
        whole = steps == self.steps
        decays, states = (self.decays, self.states) if whole else (self.decays[:steps], self.states[:steps])
        torch.mul(chunk.dt, self.rates, out=decays).exp2_()
        torch.mul(chunk.drive, chunk.B, out=states)
        for decay, here in self.pairs[steps - 1 :: -1] if reverse else self.pairs[:steps]:
            state = here.addcmul_(decay, state)
        torch.bmm(chunk.C, states.flatten(0, 1), out=chunk.output)
        return decays, states


def _tiles(inputs: _Inputs, values: int) -> Iterator[tuple[slice, slice]]:
    """The batch items and channels of each tile; on other devices than CPUs one tile has all."""
    batch, _, inner = inputs.u.shape
    items, channels = batch, inner
    if inputs.u.device.type == "cpu":
        parts = -(-inner * inputs.A.shape[1] // values)
        channels = -(-inner // parts)
        items = max(1, values // (channels * inputs.A.shape[1]))
    for item in range(0, batch, items):
        for channel in range(0, inner, channels):
            yield slice(item, min(item + items, batch)), slice(channel, min(channel + channels, inner))


def _forward(
    inputs: _Inputs, delta_softplus: bool, reverse: bool, *, checkpoint: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the last state, and the states before each chunk of the backward pass, if asked.

    The latter are (chunks, batch, state, inner); a state is that before a chunk in the order of the walk.
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
                _, states = tile.walk(chunk, tile.state, reverse)
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
    dy: Tensor,
    dstate: Tensor | None,
    inputs: _Inputs,
    checkpoints: Tensor,
    delta_softplus: bool,
    reverse: bool,
) -> list[Tensor | None]:
    """The gradients of all inputs, None for those that are None."""
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
                back.walk(chunk, checkpoints[number, items, :, channels], reverse)
            back.add_to(gradients, items, channels, inputs.D, delta_softplus)
    return [gradients[name].to(given[name].dtype) if name in given else None for name in _Inputs._fields]


class _BackwardTile:
    """A tile with what the walk back in time reads and collects."""

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

    def walk(self, chunk: _Chunk, state: Tensor, reverse: bool) -> None:
        """One chunk's part of the gradients, from the state before it and the gradient of the state after it."""
        tile, times = self.tile, chunk.times
        decays, states = tile.walk(chunk, state, reverse)
        steps = len(states)
        # What is left in each state of the one before it: through it alone the decays have a gradient.
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
        """Adds what the walk collected to the gradients of the whole."""
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
    """Writes weights (steps, items, state) times values (steps, items, state, inner), summed over states."""
    torch.bmm(weights.flatten(0, 1).unsqueeze(1), values.flatten(0, 1), out=out.flatten(0, 1).unsqueeze(1))


def _sum_over_channels(values: Tensor, weights: Tensor, out: Tensor) -> None:
    """Writes values (steps, items, state, inner) times weights (steps, items, inner), summed over channels."""
    torch.bmm(values.flatten(0, 1), weights.flatten(0, 1).unsqueeze(2), out=out.flatten(0, 1).unsqueeze(2))
