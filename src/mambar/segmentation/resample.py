"""Deterministic bilinear resizing and average pooling of feature maps as two matrix products.

Equal to `interpolate(mode="bilinear", align_corners=False)` and `adaptive_avg_pool2d` up to rounding
(`tests/segmentation/test_resample.py`). The CUDA backward of both uses atomics and is not deterministic; a
matrix product is, at a few percent of the cost of a decoder. A part of a large output needs only some rows of the
weights, which saves memory.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def resized(
    maps: Float[Tensor, "batch dim rows cols"], size: tuple[int, int]
) -> Float[Tensor, "batch dim height width"]:
    """Maps resized bilinearly to `size` (height, width), as with `align_corners=False`; accumulated in float32."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return resample(maps, bilinear(maps.shape[-2], size[0], maps), bilinear(maps.shape[-1], size[1], maps))


def pooled(maps: Float[Tensor, "batch dim rows cols"], num_bins: int) -> Float[Tensor, "batch dim bins bins"]:
    """Average pooling to `num_bins` × `num_bins` bins, which overlap if the sides are not divisible."""
    return resample(maps, averaging(maps.shape[-2], num_bins, maps), averaging(maps.shape[-1], num_bins, maps))


def resample(
    maps: Float[Tensor, "batch dim rows cols"],
    vertical: Float[Tensor, "height rows"],
    horizontal: Float[Tensor, "width cols"],
) -> Float[Tensor, "batch dim height width"]:
    """Maps multiplied by a weight matrix along each side, in the dtype of the maps, rounded once."""
    # Autocast would round the intermediate product to half precision.
    with torch.autocast(maps.device.type, enabled=False):
        return (vertical @ maps.to(vertical.dtype) @ horizontal.T).to(maps.dtype)


def bilinear(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """The weights that resize a side of `old` pixels to `new`, in at least float32 on the device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    centre = (torch.arange(new, device=like.device, dtype=dtype) + 0.5) * (old / new) - 0.5
    centre = centre.clamp(0, old - 1)[:, None]
    # The triangle filter: 1 - distance, clamped at 0.
    return (1 - (centre - torch.arange(old, device=like.device, dtype=dtype)).abs()).clamp(min=0)


def averaging(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """The weights that average a side of `old` pixels to `new` bins of whole pixels."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    bins = torch.arange(new, device=like.device)[:, None]
    index = torch.arange(old, device=like.device)
    start, stop = bins * old // new, -(-(bins + 1) * old // new)
    inside = ((index >= start) & (index < stop)).to(dtype)
    return inside / inside.sum(1, keepdim=True)


def support(old: int, new: int, wanted: range) -> range:
    """The pixels of a side of length `old` that contribute to the pixels `wanted` of the side resized to `new`."""
    first, last = ((pixel + 0.5) * old / new - 0.5 for pixel in (wanted.start, wanted.stop - 1))
    # One more pixel on each side, since the weights are rounded to float32.
    return range(max(math.floor(first) - 1, 0), min(max(math.floor(last), 0) + 3, old))
