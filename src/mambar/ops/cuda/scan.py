"""Launches of the scan kernels, for one direction or for both directions of the mixer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mambar.ops.cuda.launch import (
    SCALARS,
    Argument,
    ceil_div,
    channels_at_once,
    launch,
    least_shared_memory,
    multiprocessors,
)

LARGEST_STATE = 16
# Exponentials of every 16 that the forward computes on the multiply-add units; float32 needs exact ones.
POLYNOMIAL = 1
# As in the sources: positions and turns of a ring of activations, channels of a block of the backward.
STEPS, RING = 4, 4
STEPS_FORWARD, RING_FORWARD = 8, 3
CHANNELS_PER_BLOCK = 128
THREADS_FORWARD = 64
# How fast the forward runs with that many blocks on each multiprocessor, measured on an H200.
RATE_OF_RESIDENT = {8: 1.0, 7: 0.98, 6: 0.95, 5: 0.85}
TILE = None
# Positions whose B and C lie in shared memory at once: all in the backward of short sequences, else some.
WINDOW_FORWARD, WINDOW_BACKWARD, LONGEST_WINDOW = 64, 128, 224


@dataclass(frozen=True, kw_only=True)
class Way:
    """The parameters of one direction of a scan; float32."""

    A: Tensor
    D: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Strides:
    """How far apart batches, positions and directions are in one tensor, in elements."""

    batch: int
    time: int
    way: int = 0

    @staticmethod
    def of(tensor: Tensor) -> "Strides":
        """Those of (batch, length, channels) or (ways, batch, length, channels)."""
        *way, batch, time, _ = tensor.stride()
        return Strides(batch=batch, time=time, way=way[0] if way else 0)

    def both(self) -> tuple[int, int]:
        """Without that of directions."""
        return self.batch, self.time

    def all(self) -> tuple[int, int, int]:
        """In the order of the kernels' arguments."""
        return self.batch, self.time, self.way


def _parameters(ways: tuple[Way, ...]) -> tuple[Argument, ...]:
    ahead, behind = ways[0], ways[-1]
    return ahead.A, behind.A, ahead.D, behind.D, ahead.bias, behind.bias


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How the forward cuts its work: channels a thread takes, threads that share a channel, blocks at a time."""

    channels: int
    lanes: int
    resident: int
    """Blocks that a multiprocessor holds at once."""


def _tile(u: Tensor, channels: int) -> Tile:
    """Two channels a thread where that fills the GPU; else one, and its states over four threads: latency counts."""
    batch, inner = u.shape[-3], u.shape[-1]
    places = multiprocessors(u.device.index)
    warps = batch * inner / 32 / (4 * places)
    if warps < 1.5:
        return Tile(channels=1, lanes=4, resident=12)
    if warps < 4 or channels == 1:
        return Tile(channels=1, lanes=1, resident=8)
    blocks = batch * ceil_div(inner, THREADS_FORWARD * 2)

    def speed(resident: int) -> float:
        # Rounds of blocks are whole: fewer at a time can be faster than a last round that is nearly empty.
        rounds = ceil_div(blocks, resident * places)
        return blocks / (rounds * resident * places) * RATE_OF_RESIDENT[resident]

    return Tile(channels=2, lanes=1, resident=max(RATE_OF_RESIDENT, key=speed))


def _rows_are_pieces(*tensors: Tensor | None) -> bool:
    return all(t is None or channels_at_once(16 // t.element_size(), t) * t.element_size() == 16 for t in tensors)


def _even_windows(length: int, longest: int, steps: int) -> int:
    """The sequence cut into windows of one size, a multiple of `steps`, of about `longest` positions at most."""
    return ceil_div(ceil_div(length, ceil_div(length, longest)), steps) * steps


def scan_forward(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    ways: tuple[Way, ...],
    *,
    initial: Tensor | None = None,
    last: Tensor | None = None,
    softplus: bool = True,
    reverse: bool = False,
    scale: float = 1.0,
    keep: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The gated output, and with `keep` what went into the gate; fills `last` with the last state.

    With two ways u, delta, B and C have a leading dimension for them, and the output is `scale` times their sum.
    """
    batch, length, inner = u.shape[-3:]
    y = torch.empty((batch, length, inner), dtype=u.dtype, device=u.device)
    kept = torch.empty_like(y) if keep else None
    tile = _tile(u, channels_at_once(2, u, delta, z, y)) if TILE is None else TILE
    window = _even_windows(length, WINDOW_FORWARD, STEPS_FORWARD)
    # In bytes: B and C of the window; u, delta, z and, for two ways, y.
    arrays = 2 + (z is not None) + (len(ways) == 2)
    ring = RING_FORWARD * STEPS_FORWARD * arrays * THREADS_FORWARD * tile.channels // tile.lanes * u.element_size()
    launch(
        "scan_forward",
        "scan_forward",
        (ceil_div(inner * tile.lanes, THREADS_FORWARD * tile.channels), batch, 1),
        THREADS_FORWARD,
        *(u, delta, B, C, z, *_parameters(ways), initial, y, kept, last),
        *(length, inner, ways[0].A.shape[1], window, float(scale)),
        *Strides.of(u).all(),
        *Strides.of(delta).all(),
        *Strides.of(B).all(),
        *Strides.of(C).all(),
        *(Strides.of(z).both() if z is not None else (0, 0)),
        shared=max(window * 128 + ring, least_shared_memory(u.device.index, tile.resident)),
        SCALAR=SCALARS[u.dtype],
        STEPS=STEPS_FORWARD,
        RING=RING_FORWARD,
        CHANNELS=tile.channels,
        LANES=tile.lanes,
        THREADS=THREADS_FORWARD,
        BLOCKS=tile.resident,
        POLYNOMIAL=POLYNOMIAL if softplus and u.dtype != torch.float32 else 0,
        SOFTPLUS=int(softplus),
        GATED=int(z is not None),
        KEPT=int(keep),
        WAYS=len(ways),
        REVERSE=int(reverse),
        STAGED=int(_rows_are_pieces(u, delta, z, y)),
        WHOLE_ROWS=int(ways[0].A.shape[1] == 16 and _rows_are_pieces(B, C)),
    )
    return y, kept


@dataclass(frozen=True, kw_only=True)
class ScanGradients:
    """What the backward of the scan gives; those of parameters have a leading dimension (ways * batch)."""

    u: Tensor
    delta: Tensor
    blocks: Tensor
    """Gradients of B and C, (ways * batch, blocks, length, 32), still to be added over blocks."""
    A: Tensor
    D: Tensor
    bias: Tensor
    initial: Tensor | None


def scan_backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    ways: tuple[Way, ...],
    *,
    ddelta: Tensor | None = None,
    initial: Tensor | None = None,
    dlast: Tensor | None = None,
    softplus: bool = True,
    reverse: bool = False,
) -> ScanGradients:
    """Gradients of a scan without gate, from that of its sum; `ddelta` may be `delta` itself, which is then lost."""
    batch, length, inner = u.shape[-3:]
    state, count = ways[0].A.shape[1], len(ways)
    across = ceil_div(inner, CHANNELS_PER_BLOCK)
    blocks = min(across * batch * count, 2 * multiprocessors(u.device.index))
    window = _even_windows(length, LONGEST_WINDOW if length <= LONGEST_WINDOW else WINDOW_BACKWARD, STEPS)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=u.device)

    found = ScanGradients(
        u=new(*u.shape, dtype=u.dtype),
        delta=new(*u.shape, dtype=u.dtype) if ddelta is None else ddelta,
        blocks=new(count * batch, across, length, 32),
        A=new(count * batch, inner, state),
        D=new(count * batch, inner),
        bias=new(count * batch, inner),
        initial=None if initial is None else new(count * batch, inner, state),
    )
    scratch = new(blocks * CHANNELS_PER_BLOCK // 32 * ceil_div(length, STEPS) * 512)
    # In bytes: B and C of the window, staged numbers, sums of warps, checkpoints, u, delta and dy, barriers.
    shared = window * 128 + 4 * STEPS * (3 * CHANNELS_PER_BLOCK + RING * 128) + RING * 64 * CHANNELS_PER_BLOCK
    shared += RING * STEPS * 3 * CHANNELS_PER_BLOCK * u.element_size() + 16
    launch(
        "scan_backward",
        "scan_backward",
        (blocks, 1, 1),
        CHANNELS_PER_BLOCK,
        *(u, delta, B, C, dy, *_parameters(ways), initial, dlast),
        *(found.u, found.delta, found.blocks, found.A, found.D, found.bias, found.initial, scratch),
        *(batch, length, inner, state, window),
        *Strides.of(u).all(),
        *Strides.of(delta).all(),
        *Strides.of(B).all(),
        *Strides.of(C).all(),
        *Strides.of(dy).both(),
        shared=shared,
        SCALAR=SCALARS[u.dtype],
        SOFTPLUS=int(softplus),
        WAYS=count,
        REVERSE=int(reverse),
        STAGED=int(_rows_are_pieces(u, delta, dy)),
        WHOLE_ROWS=int(state == 16 and _rows_are_pieces(B, C)),
        TENSOR=int(u.dtype != torch.float32),
    )
    return found


def add_blocks(blocks: Tensor, dB: Tensor, dC: Tensor) -> None:
    """Writes the gradients of B and C, (batch, length, state) or with a leading dimension for ways."""
    count = dB.shape[0] if dB.dim() == 4 else 1
    *_, batch, length, state = dB.shape
    launch(
        "gate",
        "add_blocks",
        (ceil_div(length * 32, 256), batch, count),
        256,
        *(blocks, dB, dC, batch, blocks.shape[1], length, state),
        *Strides.of(dB).all(),
        *Strides.of(dC).all(),
        SCALAR=SCALARS[dB.dtype],
        CHANNELS=1,
        GATED=0,
    )


def gate_backward(dout: Tensor, mixed: Tensor, z: Tensor, dz: Tensor, *, scale: float, gated: bool) -> Tensor:
    """The gradient of the sum before `scale * sum * silu(z)`; fills `dz`. `mixed` is the result of the gate, or
    what went into it (`gated=False`)."""
    batch, length, inner = z.shape
    dy = torch.empty((batch, length, inner), dtype=z.dtype, device=z.device)
    launch(
        "gate",
        "gate_backward",
        (batch * length, 1, 1),
        128,
        *(dout, mixed, z, dy, dz, length, inner, float(scale)),
        *Strides.of(dout).both(),
        *Strides.of(z).both(),
        *Strides.of(dz).both(),
        SCALAR=SCALARS[z.dtype],
        CHANNELS=channels_at_once(4, dout, mixed, z, dy, dz),
        GATED=int(gated),
    )
    return dy
