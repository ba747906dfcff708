"""UPerNet's decoder (arXiv 1807.10221) and the fully convolutional head that helps to train it.

Written small because no kept library offers it for a backbone of one stride: segmentation_models_pytorch's refuses
such encoders, mmseg's does not install, transformers' takes its norm from no field and ties the decoder to its own
backbone loader. `tests/segmentation/test_upernet.py` holds both heads against transformers' with shared weights.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.nn.pyramid import map_norm
from mambar.segmentation.resample import pooled, resized

# Cells a side of the pyramid pooling.
POOL_CELLS = (1, 2, 3, 6)


class ConvNorm(nn.Module):
    """Convolution without bias (size kept), normalization, ReLU."""

    def __init__(self, dim_in: int, dim_out: int, *, kernel_size: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, taps, padding=taps // 2, bias=False)
        self.norm = map_norm(norm, dim_out)

    def forward(self, maps: Float[Tensor, "batch dim rows cols"]) -> Float[Tensor, "batch out rows cols"]:
        return torch.relu(self.norm(self.conv(maps)))


class PyramidPooling(nn.Module):
    """The map beside its means over 1, 4, 9 and 36 cells, fused: every place knows the scene."""

    def __init__(self, dim: int, channels: int, *, norm: str) -> None:
        super().__init__()
        self.cells = nn.ModuleList(ConvNorm(dim, channels, kernel_size=1, norm=norm) for _ in POOL_CELLS)
        self.fuse = ConvNorm(dim + len(POOL_CELLS) * channels, channels, kernel_size=3, norm=norm)

    def forward(self, maps: Float[Tensor, "batch dim rows cols"]) -> Float[Tensor, "batch channels rows cols"]:
        size = (maps.shape[-2], maps.shape[-1])
        seen = [resized(conv(pooled(maps, cells)), size) for conv, cells in zip(self.cells, POOL_CELLS, strict=True)]
        return self.fuse(torch.cat([maps, *seen], dim=1))


class UPerHead(nn.Module):
    """Top-down fusion of four maps, coarsest first through `PyramidPooling`; logits at the finest map's size."""

    def __init__(
        self, dims: Sequence[int], *, num_classes: int, channels: int = 512, norm: str = "group", dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.top = PyramidPooling(dims[-1], channels, norm=norm)
        self.lateral = nn.ModuleList(ConvNorm(dim, channels, kernel_size=1, norm=norm) for dim in dims[:-1])
        self.smooth = nn.ModuleList(ConvNorm(channels, channels, kernel_size=3, norm=norm) for _ in dims[:-1])
        self.fuse = ConvNorm(len(dims) * channels, channels, kernel_size=3, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(channels, num_classes)

    def forward(self, maps: Sequence[Float[Tensor, "batch _ _ _"]]) -> Float[Tensor, "batch classes rows cols"]:
        finest = _size(maps[0])
        below = self.top(maps[-1])
        fused = [resized(below, finest)]
        for index in reversed(range(len(self.lateral))):
            here = self.lateral[index](maps[index])
            below = here + resized(below, _size(here))
            fused.insert(0, resized(self.smooth[index](below), finest))
        return self.classifier(self.dropout(self.fuse(torch.cat(fused, dim=1))))


class FCNHead(nn.Module):
    """One convolution and a classifier on one map: a second loss near the backbone, unused after training."""

    def __init__(
        self, dim: int, *, num_classes: int, channels: int = 256, norm: str = "group", dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, channels, kernel_size=3, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(channels, num_classes)

    def forward(self, maps: Float[Tensor, "batch dim rows cols"]) -> Float[Tensor, "batch classes rows cols"]:
        return self.classifier(self.dropout(self.conv(maps)))


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    classifier = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    assert classifier.bias is not None
    nn.init.zeros_(classifier.bias)
    return classifier


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
