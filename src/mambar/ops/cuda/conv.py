"""Launches of the convolution kernels, for one direction or for both directions of the mixer."""

import torch
from torch import Tensor

from mambar.ops.cuda.launch import SCALARS, ceil_div, channels_at_once, launch, multiprocessors
from mambar.ops.cuda.scan import Strides

THREADS = 128
CHANNELS_FORWARD, CHANNELS_BACKWARD = 4, 2
Weights = tuple[Tensor, Tensor | None]


def _segment(batch: int, length: int, inner: int, channels: int, device: int) -> int:
    """Positions a thread walks through: as many as leave each multiprocessor some 20 warps."""
    warps = batch * inner / channels / 32
    segments = max(1, round(20 * multiprocessors(device) / warps))
    return max(16, ceil_div(length, segments))


def conv_forward(x: Tensor, ways: tuple[Weights, ...], *, silu: bool, reverse: bool = False) -> Tensor:
    """(ways, batch, length, inner): each way's convolution of x; with two ways the second is the mirrored one."""
    batch, length, inner = x.shape
    y = torch.empty((len(ways), batch, length, inner), dtype=x.dtype, device=x.device)
    channels = channels_at_once(CHANNELS_FORWARD, x, y)
    segment = _segment(batch, length, inner, channels, x.device.index)
    (weight, bias), (weight_behind, bias_behind) = ways[0], ways[-1]
    launch(
        "conv",
        "conv_forward",
        (ceil_div(inner, THREADS * channels), ceil_div(length, segment), batch),
        THREADS,
        *(x, weight, weight_behind, bias, bias_behind, y, batch, length, inner, segment),
        *Strides.of(x).both(),
        **_macros(x, weight, ways, channels, silu, reverse),
    )
    return y


def conv_backward(
    dy: Tensor, x: Tensor, dx: Tensor, ways: tuple[Weights, ...], *, silu: bool, reverse: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Fills `dx`; gives each way's gradients of weight and bias. dy: (ways, batch, length, inner), or without ways."""
    batch, length, inner = x.shape
    channels = channels_at_once(CHANNELS_BACKWARD, x, dy, dx)
    segment = _segment(batch, length, inner, channels, x.device.index)
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
