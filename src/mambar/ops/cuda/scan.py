"""Launches of the scan kernels, for one direction or for both directions of the mixer."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambar.ops.cuda.launch import (
    SCALAR_CODES,
    LaunchPlan,
    TensorLayout,
    ceil_div,
    channels_per_load,
    launch,
    min_shared_memory,
    num_multiprocessors,
    plan,
)

MAX_STATE = 16
# Positions per slot of a ring buffer of activations, and slots per ring buffer.
STEPS_FORWARD, RING_FORWARD = 8, 3
STEPS_BACKWARD, RING_BACKWARD = 4, 4
THREADS_FORWARD = 64
# Channels per block of the backward, one per thread.
THREADS_BACKWARD = 128
# Positions whose B and C are in shared memory at once: all of them in the backward of short sequences.
WINDOW_FORWARD, WINDOW_BACKWARD, MAX_WINDOW = 64, 128, 224


class ScanParams(NamedTuple):
    """The parameters of one direction of a scan, in float32."""

    A: Tensor
    D: Tensor | None
    bias: Tensor | None


# Resident blocks per multiprocessor of the forward kernel.
RESIDENT_FORWARD = 8


def _num_warps(shape: Sequence[int]) -> int:
    """Warps of 32 channels: the parallel work of a scan of (…, batch, length, d_inner) that is not cut."""
    return ceil_div(shape[-1], 32) * shape[-3]


def _lanes(u: TensorLayout) -> int:
    """Threads of the forward kernel that share the states of a channel: more where few warps would fill the GPU.

    The four schedulers of a multiprocessor take whole warps, so that 3 to 4 warps are best not shared.
    """
    per_multiprocessor = _num_warps(u.shape) / num_multiprocessors(u.device)
    # Measured on an H200 (docs/kernels).
    return next((lanes for most, lanes in ((1, 8), (3, 4), (4, 1), (6, 2)) if per_multiprocessor <= most), 1)


def _num_segments(shape: Sequence[int]) -> int:
    """Segments of a sequence that is cut: enough to fill the GPU, at least 11, none shorter than 64 positions."""
    return min(max(11, 1056 // _num_warps(shape)), shape[-2] // 64)


def _segment_length(length: int, segments: int) -> int:
    return ceil_div(ceil_div(length, segments), STEPS_FORWARD) * STEPS_FORWARD


def forward_segment(shape: Sequence[int]) -> int:
    """Positions per segment in the forward for u of (…, batch, length, d_inner); the whole length if it is not cut.

    Segments run in parallel. Like all choices here that change bits, a function of shapes only.
    """
    length, segments = shape[-2], _num_segments(shape)
    # Measured on an H200: with fewer, the launch that computes the state before each segment costs more than it saves.
    return _segment_length(length, segments) if segments >= max(8, _num_warps(shape) // 24) else length


def backward_segment(shape: Sequence[int], directions: int) -> int:
    """Positions per segment in the backward, whose directions run in parallel; the whole length if it is not cut."""
    length, segments = shape[-2], _num_segments(shape)
    if segments < 2:
        return length
    # Times in units of a position of 264 blocks, two on each of the 132 multiprocessors of an H200, where they were
    # measured. A few blocks run alone on their multiprocessors, 1.5 times as fast. A cut adds 28 % for the first
    # launch, 15 for each block in turn, 12 for launches.
    blocks = ceil_div(shape[-1], THREADS_BACKWARD) * shape[-3] * directions
    full, rest = divmod(blocks, 264)
    whole = length * (full + (0 if rest == 0 else 0.67 if rest <= (66 if full else 132) else 1))
    cut = length * 1.28 * blocks / 264 + 15 * ceil_div(blocks * segments, 264) + 12
    return _segment_length(length, segments) if cut < 0.97 * whole else length


def _equal_window(length: int, longest: int, steps: int) -> int:
    """The size of equal windows that cover the sequence: a multiple of `steps`, at most about `longest` positions."""
    return ceil_div(ceil_div(length, ceil_div(length, longest)), steps) * steps


def _parameters(directions: tuple[ScanParams, ...]) -> tuple[Tensor | None, ...]:
    forward, backward = directions[0], directions[-1]
    return forward.A, backward.A, forward.D, backward.D, forward.bias, backward.bias


def _options(directions: tuple[ScanParams, ...], softplus: bool, reverse: bool) -> dict[str, int]:
    """The macros of both kernels that do not follow from the layouts."""
    # True if the row of A of a channel is four aligned 16-byte units.
    aligned = all(direction.A.shape[1] == 16 and direction.A.data_ptr() % 16 == 0 for direction in directions)
    return {"DIRECTIONS": len(directions), "ALIGNED_A": aligned, "SOFTPLUS": softplus, "REVERSE": reverse}


@functools.lru_cache(maxsize=256)
def _plan_forward(
    u: TensorLayout,
    delta: TensorLayout,
    B: TensorLayout,
    C: TensorLayout,
    z: TensorLayout | None,
    y: TensorLayout,
    *,
    state: int,
    scale: float,
    segment: int,
    saved_segment: int = 0,
    save_pregate: bool = False,
    states_only: bool = False,
    adjoint: bool = False,
    **options: int,
) -> LaunchPlan:
    """The launch plan for these layouts; `options` are those of `_options`."""
    batch, length, inner = y.shape
    lanes = _lanes(u) if segment == length else 1
    window = _equal_window(segment, WINDOW_FORWARD, STEPS_FORWARD)
    # In bytes: B and C of the window; u, delta, z and, for two directions, y; staged values.
    arrays = 2 + (z is not None) + (options["DIRECTIONS"] == 2 and not states_only)
    slot = STEPS_FORWARD * THREADS_FORWARD // lanes
    staged = 0 if lanes == 1 else 8 * slot
    shared = max(
        window * 128 + RING_FORWARD * arrays * slot * u.dtype.itemsize + staged,
        min_shared_memory(u.device, RESIDENT_FORWARD),
    )
    strides = [stride for array in (u, delta, B, C) for stride in array.batch_time_direction_strides]
    strides += z.batch_time_strides if z is not None else (0, 0)
    return plan(
        "scan_forward",
        "scan_forward",
        u.device,
        grid=(ceil_div(inner * lanes, THREADS_FORWARD), batch, ceil_div(length, segment) - states_only),
        block=THREADS_FORWARD,
        scalars=(length, segment, saved_segment, inner, state, window, scale, *strides),
        shared=shared,
        macros=dict(
            SCALAR=SCALAR_CODES[u.dtype],
            STEPS=STEPS_FORWARD,
            RING=RING_FORWARD,
            CHANNELS=1,
            LANES=lanes,
            THREADS=THREADS_FORWARD,
            MIN_BLOCKS=RESIDENT_FORWARD,
            GATED=z is not None,
            SAVE_PREGATE=save_pregate,
            STATES_ONLY=states_only,
            ADJOINT=adjoint,
            SAVE_STATES=saved_segment > 0,
            ASYNC_COPY=all(array is None or array.is_copy_aligned for array in (u, delta, z, y)),
            ALIGNED_BC=state == 16 and B.is_copy_aligned and C.is_copy_aligned,
            **options,
        ),
    )


def scan_forward(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    directions: tuple[ScanParams, ...],
    *,
    initial: Tensor | None = None,
    last: Tensor | None = None,
    softplus: bool = True,
    reverse: bool = False,
    scale: float = 1.0,
    save_pregate: bool = False,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gated output, and with `save_pregate` its value before the gate; fills `last` with the last state.

    With two directions u, delta, B and C have a leading dimension for the direction, and the output is `scale` times
    the sum of both. `states` of `empty_states` is filled for `scan_backward`.
    """
    y = torch.empty(u.shape[-3:], dtype=u.dtype, device=u.device)
    pregate = torch.empty_like(y) if save_pregate else None
    saved_segment = 0
    segment = forward_segment(u.shape)
    saves = states is not None and states.numel() > 0
    if segment < y.shape[1]:
        initial = _segment_states(
            *(u, delta, B, directions, segment, initial),
            softplus=softplus,
            reverse=reverse,
            into=states if saves else None,
        )
    elif saves:
        saved_segment = backward_segment(u.shape, len(directions))
    prepared = _plan_forward(
        *map(TensorLayout.of, (u, delta, B, C)),
        None if z is None else TensorLayout.of(z),
        TensorLayout.of(y),
        state=directions[0].A.shape[1],
        scale=float(scale),
        segment=segment,
        saved_segment=saved_segment,
        save_pregate=save_pregate,
        **_options(directions, softplus, reverse),
    )
    launch(prepared, u, delta, B, C, z, *_parameters(directions), initial, y, pregate, last, None, states)
    return y, pregate


def empty_states(like: Tensor, shape: Sequence[int], *, directions: int, state: int) -> Tensor:
    """An empty tensor for the state before each segment of `scan_backward`, on the device of `like`.

    `shape` is (batch, length, d_inner), the result (directions, batch, segments, d_inner, d_state), with 0 segments if
    the backward does not cut the sequence.
    """
    batch, length, inner = shape
    segment = backward_segment(shape, directions)
    segments = ceil_div(length, segment) if segment < length else 0
    return like.new_empty((directions, batch, segments, inner, state), dtype=torch.float32)


@functools.lru_cache(maxsize=256)
def _plan_carry(
    device: int, dtype: torch.dtype, sizes: tuple[int, ...], *, directions: int, reverse: bool
) -> LaunchPlan:
    rows, segments, inner, state = sizes
    return plan(
        "gate",
        "carry_states",
        device,
        grid=(ceil_div(inner * state, 256), rows, 1),
        block=256,
        scalars=(segments, inner, state, rows // directions, int(reverse)),
        macros=dict(SCALAR=SCALAR_CODES[dtype], CHANNELS=1, GATED=0),
    )


def _segment_states(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    directions: tuple[ScanParams, ...],
    segment: int,
    start: Tensor | None,
    *,
    softplus: bool,
    reverse: bool,
    adjoint: bool = False,
    into: Tensor | None = None,
) -> Tensor:
    """The state before each segment, (directions, batch, segments, d_inner, d_state), given that before the first.

    With `adjoint`, the gradient of the state after each segment, from dy as `u` and C as `B`. Fills `into`, if given.
    """
    batch, length, inner = u.shape[-3:]
    A, num_segments = directions[0].A, ceil_div(length, segment)
    carried = A.new_empty((len(directions), batch, num_segments, inner, A.shape[1])) if into is None else into
    step_sums = A.new_empty(carried.shape[:-1])
    layouts = [TensorLayout.of(tensor) for tensor in (u, delta, B, B)]
    prepared = _plan_forward(
        *(*layouts, None, layouts[0]._replace(shape=u.shape[-3:], strides=u.stride()[-3:])),
        state=A.shape[1],
        scale=1.0,
        segment=segment,
        states_only=True,
        adjoint=adjoint,
        **_options(directions, softplus, reverse),
    )
    pointers = _parameters(directions)
    launch(prepared, u, delta, B, B, None, *pointers, None, None, None, carried, step_sums, None)
    sizes = (len(directions) * batch, num_segments, inner, A.shape[1])
    carry = _plan_carry(u.get_device(), u.dtype, sizes, directions=len(directions), reverse=reverse != adjoint)
    launch(carry, carried, step_sums, pointers[0], pointers[1], start)
    return carried


class ScanGradients(NamedTuple):
    """Gradients of the scan; those of parameters have a leading dimension (directions * batch * segments)."""

    u: Tensor
    delta: Tensor
    blocks: Tensor
    """Gradients of B and C, (directions * batch, blocks, length, 32), to be summed over blocks."""
    A: Tensor
    D: Tensor
    bias: Tensor
    initial: Tensor | None


@functools.lru_cache(maxsize=256)
def _plan_backward(
    dy: TensorLayout,
    u: TensorLayout,
    delta: TensorLayout,
    B: TensorLayout,
    C: TensorLayout,
    *,
    state: int,
    segment: int,
    **options: int,
) -> LaunchPlan:
    batch, length, inner = u.shape[-3:]
    across, num_segments = ceil_div(inner, THREADS_BACKWARD), ceil_div(length, segment)
    blocks = min(across * batch * options["DIRECTIONS"] * num_segments, 2 * num_multiprocessors(u.device))
    longest = MAX_WINDOW if segment <= MAX_WINDOW else WINDOW_BACKWARD
    window = _equal_window(segment, longest, STEPS_BACKWARD)
    # In bytes: B and C of the window, staged values, sums of warps, checkpoints, u, delta and dy, barriers.
    shared = window * 128 + 4 * STEPS_BACKWARD * (3 * THREADS_BACKWARD + RING_BACKWARD * 128)
    shared += RING_BACKWARD * (64 + STEPS_BACKWARD * 3 * u.dtype.itemsize) * THREADS_BACKWARD + 16
    scratch = blocks * THREADS_BACKWARD // 32 * ceil_div(segment, STEPS_BACKWARD) * 512
    strides = [stride for array in (u, delta, B, C) for stride in array.batch_time_direction_strides]
    strides += dy.batch_time_strides
    return plan(
        "scan_backward",
        "scan_backward",
        u.device,
        grid=(blocks, 1, 1),
        block=THREADS_BACKWARD,
        scalars=(batch, length, segment, inner, state, window, *strides),
        shared=shared,
        buffer_sizes=(across, scratch),
        macros=dict(
            SCALAR=SCALAR_CODES[u.dtype],
            ASYNC_COPY=u.is_copy_aligned and delta.is_copy_aligned and dy.is_copy_aligned,
            ALIGNED_BC=state == 16 and B.is_copy_aligned and C.is_copy_aligned,
            TENSOR_CORES=u.dtype != torch.float32,
            SEGMENTED=num_segments > 1,
            **options,
        ),
    )


def scan_backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    directions: tuple[ScanParams, ...],
    *,
    ddelta: Tensor | None = None,
    states: Tensor | None = None,
    initial: Tensor | None = None,
    dlast: Tensor | None = None,
    softplus: bool = True,
    reverse: bool = False,
) -> ScanGradients:
    """Gradients of a scan without gate. `ddelta` can be `delta` itself, which is then overwritten.

    `states` are those that `scan_forward` stored, needed if the sequence is cut (`empty_states`).
    """
    batch, length, inner = u.shape[-3:]
    A, state, sequences = directions[0].A, directions[0].A.shape[1], len(directions) * batch
    layouts = [TensorLayout.of(tensor) for tensor in (dy, u, delta, B, C)]
    segment = backward_segment(u.shape, len(directions))
    num_segments, given_initial = ceil_div(length, segment), initial
    if segment < length:
        initial = states
        dlast = _segment_states(
            *(dy, delta, C, directions, segment, dlast), softplus=softplus, reverse=reverse, adjoint=True
        )
    prepared = _plan_backward(*layouts, state=state, segment=segment, **_options(directions, softplus, reverse))
    across, scratch = prepared.buffer_sizes
    gradients = ScanGradients(
        u=torch.empty(u.shape, dtype=u.dtype, device=u.device),
        delta=torch.empty(u.shape, dtype=u.dtype, device=u.device) if ddelta is None else ddelta,
        blocks=A.new_empty((sequences, across, length, 32)),
        A=A.new_empty((sequences * num_segments, inner, state)),
        D=A.new_empty((sequences * num_segments, inner)),
        bias=A.new_empty((sequences * num_segments, inner)),
        initial=None if given_initial is None else A.new_empty((sequences, num_segments, inner, state)),
    )
    launch(prepared, u, delta, B, C, dy, *_parameters(directions), initial, dlast, *gradients, A.new_empty(scratch))
    if gradients.initial is None:
        return gradients
    return gradients._replace(initial=gradients.initial[:, -1 if reverse else 0])


@functools.lru_cache(maxsize=256)
def _plan_add_blocks(dB: TensorLayout, dC: TensorLayout, across: int) -> LaunchPlan:
    batch, length, state = dB.shape[-3:]
    return plan(
        "gate",
        "add_blocks",
        dB.device,
        grid=(ceil_div(length * 32, 256), batch, dB.shape[0] if len(dB.shape) == 4 else 1),
        block=256,
        scalars=(batch, across, length, state, *dB.batch_time_direction_strides, *dC.batch_time_direction_strides),
        macros=dict(SCALAR=SCALAR_CODES[dB.dtype], CHANNELS=1, GATED=0),
    )


def add_blocks(blocks: Tensor, dB: Tensor, dC: Tensor) -> None:
    """Stores the gradients of B and C: (batch, length, d_state), or with a leading dimension for the direction."""
    launch(_plan_add_blocks(TensorLayout.of(dB), TensorLayout.of(dC), blocks.shape[1]), blocks, dB, dC)


@functools.lru_cache(maxsize=256)
def _plan_gate(
    dout: TensorLayout, mixed: TensorLayout, z: TensorLayout, dz: TensorLayout, *, scale: float, gated: bool
) -> LaunchPlan:
    batch, length, inner = z.shape
    return plan(
        "gate",
        "gate_backward",
        z.device,
        grid=(batch * length, 1, 1),
        block=128,
        scalars=(length, inner, scale, *dout.batch_time_strides, *z.batch_time_strides, *dz.batch_time_strides),
        macros=dict(SCALAR=SCALAR_CODES[z.dtype], CHANNELS=channels_per_load(4, dout, mixed, z, dz), GATED=gated),
    )


def gate_backward(dout: Tensor, mixed: Tensor, z: Tensor, dz: Tensor, *, scale: float, gated: bool) -> Tensor:
    """The gradient of the sum in `scale * sum * silu(z)`; fills `dz`.

    `mixed` is the output of the gate, or with `gated=False` its value before the gate.
    """
    dy = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    prepared = _plan_gate(*map(TensorLayout.of, (dout, mixed, z, dz)), scale=float(scale), gated=gated)
    launch(prepared, dout, mixed, z, dy, dz)
    return dy
