"""Feature pyramid: patch-token maps of one stride resampled to the four strides of convolutional decoders."""

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from mambar.errors import InputError


def _group_norm(dim: int) -> nn.Module:
    # At most 32 groups of at least 8 channels: a group of one channel would set a 1x1 map to zero.
    groups = next((count for count in range(min(32, dim // 8), 0, -1) if dim % count == 0), 1)
    return nn.GroupNorm(groups, dim)


# Normalization of feature maps. Published decoders were trained with "batch" (across all GPUs of a run). "group" does
# not depend on the other images, so the result does not depend on shards, processes or micro-batches.
MAP_NORMS: dict[str, Callable[[int], nn.Module]] = {"group": _group_norm, "batch": nn.BatchNorm2d}


def map_norm(name: str, dim: int) -> nn.Module:
    """The normalization layer `name` of `MAP_NORMS`, for `dim` channels."""
    if name not in MAP_NORMS:
        raise InputError(f"norm={name!r} is not known; choose one of {', '.join(MAP_NORMS)}.")
    return MAP_NORMS[name](dim)


class FeaturePyramid(nn.Module):
    """Four maps of a plain backbone, resampled to strides of about 4, 8, 16 and 32 pixels.

    For patches of 16 pixels: ×4 and ×2 by transposed convolutions, identity, max-pool, as in BEiT's and Vim's
    segmentation code; smaller patches need fewer doublings. The finest stride is 4 pixels, or the patch size if
    that is smaller. Pooling keeps the last row and column of a grid with odd sides.
    """

    def __init__(self, dim: int, patch_size: int, *, norm: str = "group") -> None:
        super().__init__()
        doublings = max(round(math.log2(patch_size / 4)), 0)
        self.levels = nn.ModuleList(_level(dim, doublings - index, norm) for index in range(4))

    def forward(
        self, maps: Sequence[Float[Tensor, "batch dim rows cols"]]
    ) -> list[Float[Tensor, "batch dim level_rows level_cols"]]:
        """The maps, finest first; the first given map becomes the finest."""
        if len(maps) != len(self.levels):
            raise InputError(f"a feature pyramid takes {len(self.levels)} maps; got {len(maps)}. Give four layers.")
        return [level(each) for level, each in zip(self.levels, maps, strict=True)]


def _level(dim: int, doublings: int, norm: str) -> nn.Module:
    if doublings == 0:
        return nn.Identity()
    if doublings < 0:
        return nn.MaxPool2d(kernel_size=2**-doublings, ceil_mode=True)
    steps: list[nn.Module] = [nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)]
    for _ in range(doublings - 1):
        steps += [map_norm(norm, dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)]
    return nn.Sequential(*steps)
