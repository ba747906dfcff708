"""Launches of the convolution kernels, for one direction or for both directions of the mixer."""

import torch
from torch import Tensor

from mambar.ops.cuda.launch import SCALARS, ceil_div, channels_at_once, launch, multiprocessors
from mambar.ops.cuda.scan import Strides

THREADS = 128
CHANNELS = 2
# Positions loaded ahead, and blocks that share a multiprocessor.
AHEAD_FORWARD, RESIDENT_FORWARD = 8, 6
AHEAD_BACKWARD, RESIDENT_BACKWARD = 4, 4
# What starting a segment costs, in positions.
START = 12
Weights = tuple[Tensor, Tensor | None]


def _segment(x: Tensor, channels: int, resident: int) -> int:
    """Positions a thread walks through: the cut of the sequence that takes the least time in whole rounds of blocks."""
    batch, length, inner = x.shape
    blocks = batch * ceil_div(inner, THREADS * channels)
    places = resident * multiprocessors(x.device.index)

    def time(segments: int) -> float:
        return ceil_div(blocks * segments, places) * (ceil_div(length, segments) + START)

    return ceil_div(length, min(range(1, max(2, min(64, length // 16))), key=time))


def conv_forward(x: Tensor, ways: tuple[Weights, ...], *, silu: bool, reverse: bool = False) -> Tensor:
    """(ways, batch, length, inner): each way's convolution of x; with two ways the second is the mirrored one."""
    batch, length, inner = x.shape
    y = torch.empty((len(ways), batch, length, inner), dtype=x.dtype, device=x.device)
    channels = channels_at_once(CHANNELS, x, y)
    segment = _segment(x, channels, RESIDENT_FORWARD)
    (weight, bias), (weight_behind, bias_behind) = ways[0], ways[-1]
    launch(
        "conv",
        "conv_forward",
        (ceil_div(inner, THREADS * channels), ceil_div(length, segment), batch),
        THREADS,
        *(x, weight, weight_behind, bias, bias_behind, y, batch, length, inner, segment),
        *Strides.of(x).both(),
        AHEAD=AHEAD_FORWARD,
        BLOCKS=RESIDENT_FORWARD,
        **_macros(x, weight, ways, channels, silu, reverse),
    )
    return y


def conv_backward(
    dy: Tensor, x: Tensor, dx: Tensor, ways: tuple[Weights, ...], *, silu: bool, reverse: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Fills `dx`; gives each way's gradients of weight and bias. dy: (ways, batch, length, inner), or without ways."""
    batch, length, inner = x.shape
    channels = channels_at_once(CHANNELS, x, dy, dx)
    segment = _segment(x, channels, RESIDENT_BACKWARD)
    segments = ceil_div(length, segment)
    (weight, bias), (weight_behind, bias_behind) = ways[0], ways[-1]
    taps = weight.shape[1]
    sums = torch.empty((batch * segments, len(ways), inner, taps + 1), dtype=torch.float32, device=x.device)
    launch(
        "conv",
        "conv_backward",
        (ceil_div(inner, THREADS * channels), segments, batch),
        THREADS,
        *(x, dy, weight, weight_behind, bias, bias_behind, dx, sums, length, inner, segment),
        *Strides.of(x).both(),
        *Strides.of(dy).all(),
        *Strides.of(dx).both(),
        AHEAD=AHEAD_BACKWARD,
        BLOCKS=RESIDENT_BACKWARD,
        **_macros(x, weight, ways, channels, silu, reverse),
    )
    total = sums.sum(dim=0)
    return [(way[:, :taps].contiguous(), way[:, taps].contiguous()) for way in total]


def _macros(
    x: Tensor, weight: Tensor, ways: tuple[Weights, ...], channels: int, silu: bool, reverse: bool
) -> dict[str, int]:
    return {
        "SCALAR": SCALARS[x.dtype],
        "CHANNELS": channels,
        "TAPS": weight.shape[1],
        "WAYS": len(ways),
        "REVERSE": int(reverse),
        "SILU": int(silu),
        "THREADS": THREADS,
    }
