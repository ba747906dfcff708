"""Launches of the scan kernels, for one direction or for both directions of the mixer."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from mambar.ops.cuda.launch import (
    SCALARS,
    Layout,
    Plan,
    ceil_div,
    channels_at_once,
    launch,
    least_shared_memory,
    multiprocessors,
    plan,
)

LARGEST_STATE = 16
# Positions in a turn of a ring of activations, and turns in a ring.
STEPS_FORWARD, RING_FORWARD = 8, 3
STEPS_BACKWARD, RING_BACKWARD = 4, 4
THREADS_FORWARD = 64
# Channels of a block of the backward, one a thread.
THREADS_BACKWARD = 128
# Positions whose B and C lie in shared memory at once: all in the backward of short sequences, else some.
WINDOW_FORWARD, WINDOW_BACKWARD, LONGEST_WINDOW = 64, 128, 224


class Way(NamedTuple):
    """The parameters of one direction of a scan; float32."""

    A: Tensor
    D: Tensor | None
    bias: Tensor | None


class Tile(NamedTuple):
    """How the forward cuts its work."""

    lanes: int
    """Threads that share a channel's states."""
    resident: int
    """Blocks that a multiprocessor holds at once."""


# Measured on an H200 (docs/kernels): a channel a thread; for latency, the states of a channel over four threads.
FULL = Tile(lanes=1, resident=8)
SPLIT = Tile(lanes=4, resident=12)


def _tile(u: Layout) -> Tile:
    """Split states where the warps of 32 channels are fewer than the GPU's schedulers, or nearly so."""
    warps = u.shape[-3] * u.channels / 32
    return SPLIT if warps < 0.75 * 4 * multiprocessors(u.device) else FULL


def _even_windows(length: int, longest: int, steps: int) -> int:
    """The sequence cut into windows of one size, a multiple of `steps`, of about `longest` positions at most."""
    return ceil_div(ceil_div(length, ceil_div(length, longest)), steps) * steps


def _parameters(ways: tuple[Way, ...]) -> tuple[Tensor | None, ...]:
    ahead, behind = ways[0], ways[-1]
    return ahead.A, behind.A, ahead.D, behind.D, ahead.bias, behind.bias


def _whole_A(ways: tuple[Way, ...]) -> bool:
    """Whether a channel's row of A is four aligned pieces."""
    return all(way.A.shape[1] == 16 and way.A.data_ptr() % 16 == 0 for way in ways)


@functools.lru_cache(maxsize=256)
def _plan_forward(
    u: Layout,
    delta: Layout,
    B: Layout,
    C: Layout,
    z: Layout | None,
    y: Layout,
    *,
    state: int,
    whole_A: bool,
    ways: int,
    softplus: bool,
    reverse: bool,
    scale: float,
    keep: bool,
) -> Plan:
    batch, length, inner = y.shape
    tile = _tile(u)
    window = _even_windows(length, WINDOW_FORWARD, STEPS_FORWARD)
    # In bytes: B and C of the window; u, delta, z and, for two ways, y.
    arrays = 2 + (z is not None) + (ways == 2)
    turn = STEPS_FORWARD * THREADS_FORWARD // tile.lanes * u.dtype.itemsize
    shared = max(window * 128 + RING_FORWARD * arrays * turn, least_shared_memory(u.device, tile.resident))
    strides = (*u.all_steps, *delta.all_steps, *B.all_steps, *C.all_steps, *(z.steps if z is not None else (0, 0)))
    return plan(
        "scan_forward",
        "scan_forward",
        u.device,
        grid=(ceil_div(inner * tile.lanes, THREADS_FORWARD), batch, 1),
        block=THREADS_FORWARD,
        numbers=(length, inner, state, window, scale, *strides),
        shared=shared,
        macros=dict(
            SCALAR=SCALARS[u.dtype],
            STEPS=STEPS_FORWARD,
            RING=RING_FORWARD,
            CHANNELS=1,
            LANES=tile.lanes,
            THREADS=THREADS_FORWARD,
            BLOCKS=tile.resident,
            SOFTPLUS=int(softplus),
            GATED=int(z is not None),
            KEPT=int(keep),
            WAYS=ways,
            REVERSE=int(reverse),
            STAGED=int(all(array is None or array.is_pieces for array in (u, delta, z, y))),
            WHOLE_ROWS=int(state == 16 and B.is_pieces and C.is_pieces),
            WHOLE_A=int(whole_A),
        ),
    )


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
    y = torch.empty(u.shape[-3:], dtype=u.dtype, device=u.device)
    kept = torch.empty_like(y) if keep else None
    prepared = _plan_forward(
        *map(Layout.of, (u, delta, B, C)),
        Layout.maybe(z),
        Layout.of(y),
        state=ways[0].A.shape[1],
        whole_A=_whole_A(ways),
        ways=len(ways),
        softplus=softplus,
        reverse=reverse,
        scale=float(scale),
        keep=keep,
    )
    launch(prepared, u, delta, B, C, z, *_parameters(ways), initial, y, kept, last)
    return y, kept


class ScanGradients(NamedTuple):
    """What the backward of the scan gives; those of parameters have a leading dimension (ways * batch)."""

    u: Tensor
    delta: Tensor
    blocks: Tensor
    """Gradients of B and C, (ways * batch, blocks, length, 32), still to be added over blocks."""
    A: Tensor
    D: Tensor
    bias: Tensor
    initial: Tensor | None


@functools.lru_cache(maxsize=256)
def _plan_backward(
    dy: Layout,
    u: Layout,
    delta: Layout,
    B: Layout,
    C: Layout,
    *,
    state: int,
    whole_A: bool,
    ways: int,
    softplus: bool,
    reverse: bool,
) -> Plan:
    batch, length, inner = u.shape[-3:]
    across = ceil_div(inner, THREADS_BACKWARD)
    blocks = min(across * batch * ways, 2 * multiprocessors(u.device))
    longest = LONGEST_WINDOW if length <= LONGEST_WINDOW else WINDOW_BACKWARD
    window = _even_windows(length, longest, STEPS_BACKWARD)
    # In bytes: B and C of the window, staged numbers, sums of warps, checkpoints, u, delta and dy, barriers.
    shared = window * 128 + 4 * STEPS_BACKWARD * (3 * THREADS_BACKWARD + RING_BACKWARD * 128)
    shared += RING_BACKWARD * (64 + STEPS_BACKWARD * 3 * u.dtype.itemsize) * THREADS_BACKWARD + 16
    scratch = blocks * THREADS_BACKWARD // 32 * ceil_div(length, STEPS_BACKWARD) * 512
    strides = (*u.all_steps, *delta.all_steps, *B.all_steps, *C.all_steps, *dy.steps)
    return plan(
        "scan_backward",
        "scan_backward",
        u.device,
        grid=(blocks, 1, 1),
        block=THREADS_BACKWARD,
        numbers=(batch, length, inner, state, window, *strides),
        shared=shared,
        sizes=(across, scratch),
        macros=dict(
            SCALAR=SCALARS[u.dtype],
            SOFTPLUS=int(softplus),
            WAYS=ways,
            REVERSE=int(reverse),
            STAGED=int(u.is_pieces and delta.is_pieces and dy.is_pieces),
            WHOLE_ROWS=int(state == 16 and B.is_pieces and C.is_pieces),
            WHOLE_A=int(whole_A),
            TENSOR=int(u.dtype != torch.float32),
        ),
    )


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
    state, sequences = ways[0].A.shape[1], len(ways) * batch
    prepared = _plan_backward(
        *map(Layout.of, (dy, u, delta, B, C)),
        state=state,
        whole_A=_whole_A(ways),
        ways=len(ways),
        softplus=softplus,
        reverse=reverse,
    )
    across, scratch = prepared.sizes
    wide = ways[0].A
    found = ScanGradients(
        u=torch.empty(u.shape, dtype=u.dtype, device=u.device),
        delta=torch.empty(u.shape, dtype=u.dtype, device=u.device) if ddelta is None else ddelta,
        blocks=wide.new_empty((sequences, across, length, 32)),
        A=wide.new_empty((sequences, inner, state)),
        D=wide.new_empty((sequences, inner)),
        bias=wide.new_empty((sequences, inner)),
        initial=None if initial is None else wide.new_empty((sequences, inner, state)),
    )
    launch(prepared, u, delta, B, C, dy, *_parameters(ways), initial, dlast, *found, wide.new_empty(scratch))
    return found


@functools.lru_cache(maxsize=256)
def _plan_add_blocks(dB: Layout, dC: Layout, across: int) -> Plan:
    batch, length, state = dB.shape[-3:]
    return plan(
        "gate",
        "add_blocks",
        dB.device,
        grid=(ceil_div(length * 32, 256), batch, dB.shape[0] if len(dB.shape) == 4 else 1),
        block=256,
        numbers=(batch, across, length, state, *dB.all_steps, *dC.all_steps),
        macros=dict(
            SCALAR=SCALARS[dB.dtype],
            CHANNELS=1,
            GATED=0,
        ),
    )


def add_blocks(blocks: Tensor, dB: Tensor, dC: Tensor) -> None:
    """Writes the gradients of B and C, (batch, length, state) or with a leading dimension for ways."""
    launch(_plan_add_blocks(Layout.of(dB), Layout.of(dC), blocks.shape[1]), blocks, dB, dC)


@functools.lru_cache(maxsize=256)
def _plan_gate(dout: Layout, mixed: Layout, z: Layout, dz: Layout, *, scale: float, gated: bool) -> Plan:
    batch, length, inner = z.shape
    return plan(
        "gate",
        "gate_backward",
        z.device,
        grid=(batch * length, 1, 1),
        block=128,
        numbers=(length, inner, scale, *dout.steps, *z.steps, *dz.steps),
        macros=dict(
            SCALAR=SCALARS[z.dtype],
            CHANNELS=channels_at_once(4, dout, mixed, z, dz),
            GATED=int(gated),
        ),
    )


def gate_backward(dout: Tensor, mixed: Tensor, z: Tensor, dz: Tensor, *, scale: float, gated: bool) -> Tensor:
    """The gradient of the sum before `scale * sum * silu(z)`; fills `dz`.

    `mixed` is the result of the gate, or what went into it (`gated=False`).
    """
    dy = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    prepared = _plan_gate(*map(Layout.of, (dout, mixed, z, dz)), scale=float(scale), gated=gated)
    launch(prepared, dout, mixed, z, dy, dz)
    return dy
