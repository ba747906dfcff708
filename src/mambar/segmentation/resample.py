"""Bilinear resizing and average pooling of maps as two small matrix products.

Equal to `interpolate(mode="bilinear", align_corners=False)` and `adaptive_avg_pool2d` up to rounding
(`tests/segmentation/test_resample.py`). PyTorch's CUDA backward of both adds with atomics in an order that
changes from run to run; a matrix product does not, so training has the same bits in every run. The cost is a few
per cent of a decoder's.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def resized(
    maps: Float[Tensor, "batch dim rows cols"], size: tuple[int, int]
) -> Float[Tensor, "batch dim height width"]:
    """The maps at `size` (height, width), bilinear, half-pixel centres, borders repeated; added up in float32."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return _both_sides(maps, _bilinear(maps.shape[-2], size[0], maps), _bilinear(maps.shape[-1], size[1], maps))


def pooled(maps: Float[Tensor, "batch dim rows cols"], cells: int) -> Float[Tensor, "batch dim cells cells"]:
    """The mean of each of `cells` × `cells` nearly equal parts, which overlap where the sides do not divide."""
    return _both_sides(maps, _averaging(maps.shape[-2], cells, maps), _averaging(maps.shape[-1], cells, maps))


def _both_sides(maps: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    # A half-precision product would round between the two.
    with torch.autocast(maps.device.type, enabled=False):
        return (vertical @ maps.to(vertical.dtype) @ horizontal.T).to(maps.dtype)


def _bilinear(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    dtype = torch.promote_types(like.dtype, torch.float32)
    centre = (torch.arange(new, device=like.device, dtype=dtype) + 0.5) * (old / new) - 0.5
    centre = centre.clamp(0, old - 1)[:, None]
    # A hat of width 1 around each centre: 1 - distance where that is above 0.
    return (1 - (centre - torch.arange(old, device=like.device, dtype=dtype)).abs()).clamp(min=0)


def _averaging(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    dtype = torch.promote_types(like.dtype, torch.float32)
    cell = torch.arange(new, device=like.device)[:, None]
    index = torch.arange(old, device=like.device)
    first, behind = cell * old // new, -(-(cell + 1) * old // new)
    inside = ((index >= first) & (index < behind)).to(dtype)
    return inside / inside.sum(1, keepdim=True)
