"""Launches of the convolution kernels, for one direction or for both directions of the mixer."""

import functools

import torch
from torch import Tensor

from mambar.ops.cuda.launch import (
    SCALAR_CODES,
    LaunchPlan,
    TensorLayout,
    ceil_div,
    channels_per_load,
    launch,
    num_multiprocessors,
    plan,
)

THREADS = 128
# Adjacent channels per thread, positions loaded in advance, blocks per multiprocessor; measured on an H200.
CHANNELS_FORWARD, PREFETCH_FORWARD, RESIDENT_FORWARD = 4, 4, 5
CHANNELS_BACKWARD, PREFETCH_BACKWARD, RESIDENT_BACKWARD = 2, 4, 4
# Cost of starting a segment, in positions.
SEGMENT_OVERHEAD = 120
Weights = tuple[Tensor, Tensor | None]


def _segment(x: TensorLayout, channels: int, resident: int) -> int:
    """Positions per thread: the segment length with the least estimated time in whole waves of blocks."""
    batch, length, inner = x.shape
    blocks = batch * ceil_div(inner, THREADS * channels)
    concurrent = resident * num_multiprocessors(x.device)

    def time(segments: int) -> int:
        return ceil_div(blocks * segments, concurrent) * (ceil_div(length, segments) + SEGMENT_OVERHEAD)

    return ceil_div(length, min(range(1, max(2, min(64, length // 16))), key=time))


@functools.lru_cache(maxsize=256)
def _plan_forward(x: TensorLayout, y: TensorLayout, **options: int) -> LaunchPlan:
    """The launch plan for these layouts; `options` are those of `_options`, macros of the kernel."""
    _, batch, length, inner = y.shape
    channels = channels_per_load(CHANNELS_FORWARD, x, y)
    segment = _segment(x, channels, RESIDENT_FORWARD)
    return plan(
        "conv",
        "conv_forward",
        x.device,
        grid=(ceil_div(inner, THREADS * channels), ceil_div(length, segment), batch),
        block=THREADS,
        scalars=(batch, length, inner, segment, *x.batch_time_strides),
        macros=_macros(x, channels, PREFETCH_FORWARD, RESIDENT_FORWARD) | options,
    )


def conv_forward(x: Tensor, directions: tuple[Weights, ...], *, silu: bool, reverse: bool = False) -> Tensor:
    """The convolution of x as (directions, batch, length, d_inner); a second direction is reversed in time."""
    y = torch.empty((len(directions), *x.shape), dtype=x.dtype, device=x.device)
    (weight, bias), (backward_weight, backward_bias) = directions[0], directions[-1]
    prepared = _plan_forward(TensorLayout.of(x), TensorLayout.of(y), **_options(directions, silu, reverse))
    launch(prepared, x, weight, backward_weight, bias, backward_bias, y)
    return y


@functools.lru_cache(maxsize=256)
def _plan_backward(dy: TensorLayout, x: TensorLayout, dx: TensorLayout, **options: int) -> LaunchPlan:
    batch, length, inner = x.shape
    channels = channels_per_load(CHANNELS_BACKWARD, x, dy, dx)
    segment = _segment(x, channels, RESIDENT_BACKWARD)
    segments = ceil_div(length, segment)
    strides = (*x.batch_time_strides, *dy.batch_time_direction_strides, *dx.batch_time_strides)
    return plan(
        "conv",
        "conv_backward",
        x.device,
        grid=(ceil_div(inner, THREADS * channels), segments, batch),
        block=THREADS,
        scalars=(length, inner, segment, *strides),
        buffer_sizes=(batch * segments,),
        macros=_macros(x, channels, PREFETCH_BACKWARD, RESIDENT_BACKWARD) | options,
    )


def conv_backward(
    dy: Tensor, x: Tensor, dx: Tensor, directions: tuple[Weights, ...], *, silu: bool, reverse: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Fills `dx` and returns the gradients of weight and bias per direction.

    dy is (directions, batch, length, d_inner), or without the first dimension."""
    (weight, bias), (backward_weight, backward_bias) = directions[0], directions[-1]
    taps = weight.shape[1]
    prepared = _plan_backward(*map(TensorLayout.of, (dy, x, dx)), **_options(directions, silu, reverse))
    sums = weight.new_empty((prepared.buffer_sizes[0], len(directions), x.shape[-1], taps + 1))
    launch(prepared, x, dy, weight, backward_weight, bias, backward_bias, dx, sums)
    total = sums.sum(dim=0)
    return [(direction[:, :taps].contiguous(), direction[:, taps].contiguous()) for direction in total]


def _options(directions: tuple[Weights, ...], silu: bool, reverse: bool) -> dict[str, int]:
    """The macros that do not follow from the layouts."""
    taps = directions[0][0].shape[1]
    # True if the weights of a channel are one aligned 16-byte unit.
    aligned = all(weight.shape[1] == 4 and weight.data_ptr() % 16 == 0 for weight, _ in directions)
    return {"TAPS": taps, "ALIGNED_TAPS": aligned, "DIRECTIONS": len(directions), "REVERSE": reverse, "SILU": silu}


def _macros(x: TensorLayout, channels: int, prefetch: int, resident: int) -> dict[str, int]:
    sizes = {"CHANNELS": channels, "PREFETCH": prefetch, "MIN_BLOCKS": resident, "THREADS": THREADS}
    return {"SCALAR": SCALAR_CODES[x.dtype], **sizes}
