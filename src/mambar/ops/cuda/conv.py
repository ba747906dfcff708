"""Launches of the convolution kernels, for one direction or for both directions of the mixer."""

import functools

import torch
from torch import Tensor

from mambar.ops.cuda.launch import SCALARS, Layout, Plan, ceil_div, channels_at_once, launch, multiprocessors, plan

THREADS = 128
# Neighbouring channels a thread takes, positions loaded ahead, blocks that share a multiprocessor; measured on an H200.
CHANNELS_FORWARD, AHEAD_FORWARD, RESIDENT_FORWARD = 4, 4, 5
CHANNELS_BACKWARD, AHEAD_BACKWARD, RESIDENT_BACKWARD = 2, 4, 4
# What starting a segment costs, in positions.
START = 120
Weights = tuple[Tensor, Tensor | None]


def _segment(x: Layout, channels: int, resident: int) -> int:
    """Positions a thread walks through: the cut of the sequence that takes the least time in whole rounds of blocks."""
    batch, length, inner = x.shape
    blocks = batch * ceil_div(inner, THREADS * channels)
    places = resident * multiprocessors(x.device)

    def time(segments: int) -> int:
        return ceil_div(blocks * segments, places) * (ceil_div(length, segments) + START)

    return ceil_div(length, min(range(1, max(2, min(64, length // 16))), key=time))


@functools.lru_cache(maxsize=256)
def _plan_forward(x: Layout, y: Layout, *, taps: int, whole: bool, silu: bool, reverse: bool) -> Plan:
    ways, batch, length, inner = y.shape
    channels = channels_at_once(CHANNELS_FORWARD, x, y)
    segment = _segment(x, channels, RESIDENT_FORWARD)
    return plan(
        "conv",
        "conv_forward",
        x.device,
        grid=(ceil_div(inner, THREADS * channels), ceil_div(length, segment), batch),
        block=THREADS,
        numbers=(batch, length, inner, segment, *x.steps),
        macros=dict(
            AHEAD=AHEAD_FORWARD,
            BLOCKS=RESIDENT_FORWARD,
            WHOLE_TAPS=int(whole),
            **_macros(x, channels, taps, ways, silu, reverse),
        ),
    )


def conv_forward(x: Tensor, ways: tuple[Weights, ...], *, silu: bool, reverse: bool = False) -> Tensor:
    """(ways, batch, length, inner): each way's convolution of x; with two ways the second is the mirrored one."""
    y = torch.empty((len(ways), *x.shape), dtype=x.dtype, device=x.device)
    (weight, bias), (weight_behind, bias_behind) = ways[0], ways[-1]
    prepared = _plan_forward(
        Layout.of(x), Layout.of(y), taps=weight.shape[1], whole=_whole_taps(ways), silu=silu, reverse=reverse
    )
    launch(prepared, x, weight, weight_behind, bias, bias_behind, y)
    return y


@functools.lru_cache(maxsize=256)
def _plan_backward(
    dy: Layout, x: Layout, dx: Layout, *, taps: int, whole: bool, ways: int, silu: bool, reverse: bool
) -> Plan:
    batch, length, inner = x.shape
    channels = channels_at_once(CHANNELS_BACKWARD, x, dy, dx)
    segment = _segment(x, channels, RESIDENT_BACKWARD)
    segments = ceil_div(length, segment)
    return plan(
        "conv",
        "conv_backward",
        x.device,
        grid=(ceil_div(inner, THREADS * channels), segments, batch),
        block=THREADS,
        numbers=(length, inner, segment, *x.steps, *dy.all_steps, *dx.steps),
        sizes=(batch * segments,),
        macros=dict(
            AHEAD=AHEAD_BACKWARD,
            BLOCKS=RESIDENT_BACKWARD,
            WHOLE_TAPS=int(whole),
            **_macros(x, channels, taps, ways, silu, reverse),
        ),
    )


def conv_backward(
    dy: Tensor, x: Tensor, dx: Tensor, ways: tuple[Weights, ...], *, silu: bool, reverse: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Fills `dx`; gives each way's gradients of weight and bias. dy: (ways, batch, length, inner), or without ways."""
    (weight, bias), (weight_behind, bias_behind) = ways[0], ways[-1]
    taps = weight.shape[1]
    prepared = _plan_backward(
        *map(Layout.of, (dy, x, dx)), taps=taps, whole=_whole_taps(ways), ways=len(ways), silu=silu, reverse=reverse
    )
    sums = weight.new_empty((prepared.sizes[0], len(ways), x.shape[-1], taps + 1))
    launch(prepared, x, dy, weight, weight_behind, bias, bias_behind, dx, sums)
    total = sums.sum(dim=0)
    return [(way[:, :taps].contiguous(), way[:, taps].contiguous()) for way in total]


def _whole_taps(ways: tuple[Weights, ...]) -> bool:
    """Whether a channel's weights are one aligned piece."""
    return all(weight.shape[1] == 4 and weight.data_ptr() % 16 == 0 for weight, _ in ways)


def _macros(x: Layout, channels: int, taps: int, ways: int, silu: bool, reverse: bool) -> dict[str, int]:
    return {
        "SCALAR": SCALARS[x.dtype],
        "CHANNELS": channels,
        "TAPS": taps,
        "WAYS": ways,
        "REVERSE": int(reverse),
        "SILU": int(silu),
        "THREADS": THREADS,
    }
