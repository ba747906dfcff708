"""Bilinear resizing and average pooling of maps as two small matrix products.

Equal to `interpolate(mode="bilinear", align_corners=False)` and `adaptive_avg_pool2d` up to rounding
(`tests/segmentation/test_resample.py`). PyTorch's CUDA backward of both adds with atomics in an order that
changes from run to run; a matrix product does not, so training has the same bits in every run. The cost is a few
per cent of a decoder's. A part of a large result is a part of the weights' rows, so it needs no memory for the rest.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def resized(
    maps: Float[Tensor, "batch dim rows cols"], size: tuple[int, int]
) -> Float[Tensor, "batch dim height width"]:
    """The maps at `size` (height, width), bilinear, half-pixel centres, borders repeated; added up in float32."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return resample(maps, bilinear(maps.shape[-2], size[0], maps), bilinear(maps.shape[-1], size[1], maps))


def pooled(maps: Float[Tensor, "batch dim rows cols"], cells: int) -> Float[Tensor, "batch dim cells cells"]:
    """The mean of each of `cells` × `cells` nearly equal parts, which overlap where the sides do not divide."""
    return resample(maps, averaging(maps.shape[-2], cells, maps), averaging(maps.shape[-1], cells, maps))


def resample(
    maps: Float[Tensor, "batch dim rows cols"],
    vertical: Float[Tensor, "height rows"],
    horizontal: Float[Tensor, "width cols"],
) -> Float[Tensor, "batch dim height width"]:
    """Maps with new sides, each place a weighted sum of the old ones; the maps' dtype, rounded once."""
    # A half-precision product would round between the two.
    with torch.autocast(maps.device.type, enabled=False):
        return (vertical @ maps.to(vertical.dtype) @ horizontal.T).to(maps.dtype)


def bilinear(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """The weights of a side of `old` places resized to `new`, in at least float32 on the device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    centre = (torch.arange(new, device=like.device, dtype=dtype) + 0.5) * (old / new) - 0.5
    centre = centre.clamp(0, old - 1)[:, None]
    # A hat of width 1 around each centre: 1 - distance where that is above 0.
    return (1 - (centre - torch.arange(old, device=like.device, dtype=dtype)).abs()).clamp(min=0)


def averaging(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """The weights of a side's mean over `new` cells of whole places."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    cell = torch.arange(new, device=like.device)[:, None]
    index = torch.arange(old, device=like.device)
    first, behind = cell * old // new, -(-(cell + 1) * old // new)
    inside = ((index >= first) & (index < behind)).to(dtype)
    return inside / inside.sum(1, keepdim=True)


def support(old: int, new: int, wanted: range) -> range:
    """The places of a side of length `old` that `wanted` places of the side resized to `new` are made of."""
    first, last = ((place + 0.5) * old / new - 0.5 for place in (wanted.start, wanted.stop - 1))
    # One place more on each side: rounding differs between this and the float32 of the weights.
    return range(max(math.floor(first) - 1, 0), min(max(math.floor(last), 0) + 3, old))
