"""UPerNet's decoder (arXiv 1807.10221) and the fully convolutional auxiliary head.

Other libraries do not support a backbone with a single stride: segmentation_models_pytorch rejects such encoders,
mmseg could not be installed, and transformers fixes the norm and loads its own backbone. With the same weights both
heads give the outputs of transformers (`tests/segmentation/test_upernet.py`).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.nn.pyramid import map_norm
from mambar.segmentation.resample import pooled, resized

# Bins per side of the pooled maps.
POOL_SIZES = (1, 2, 3, 6)


class ConvNorm(nn.Module):
    """Convolution without bias (same size), normalization, ReLU."""

    def __init__(self, in_chans: int, out_chans: int, *, kernel_size: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = map_norm(norm, out_chans)

    def forward(self, maps: Float[Tensor, "batch dim rows cols"]) -> Float[Tensor, "batch out rows cols"]:
        return torch.relu(self.norm(self.conv(maps)))


class PyramidPooling(nn.Module):
    """A map concatenated with its average over 1, 4, 9 and 36 bins, and fused by a convolution."""

    def __init__(self, dim: int, channels: int, *, norm: str) -> None:
        super().__init__()
        self.cells = nn.ModuleList(ConvNorm(dim, channels, kernel_size=1, norm=norm) for _ in POOL_SIZES)
        self.fuse = ConvNorm(dim + len(POOL_SIZES) * channels, channels, kernel_size=3, norm=norm)

    def forward(self, maps: Float[Tensor, "batch dim rows cols"]) -> Float[Tensor, "batch channels rows cols"]:
        size = (maps.shape[-2], maps.shape[-1])
        context = [resized(conv(pooled(maps, bins)), size) for conv, bins in zip(self.cells, POOL_SIZES, strict=True)]
        return self.fuse(torch.cat([maps, *context], dim=1))


class UPerHead(nn.Module):
    """Top-down fusion of feature maps, the coarsest after `PyramidPooling`; logits at the finest map's size."""

    def __init__(
        self, dims: Sequence[int], *, num_classes: int, channels: int = 512, norm: str = "group", dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.top = PyramidPooling(dims[-1], channels, norm=norm)
        self.lateral = nn.ModuleList(ConvNorm(dim, channels, kernel_size=1, norm=norm) for dim in dims[:-1])
        self.smooth = nn.ModuleList(ConvNorm(channels, channels, kernel_size=3, norm=norm) for _ in dims[:-1])
        self.fuse = ConvNorm(len(dims) * channels, channels, kernel_size=3, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = make_classifier(channels, num_classes)

    def forward(self, maps: Sequence[Float[Tensor, "batch _ _ _"]]) -> Float[Tensor, "batch classes rows cols"]:
        finest = _size(maps[0])
        coarser = self.top(maps[-1])
        fused = [resized(coarser, finest)]
        for index in reversed(range(len(self.lateral))):
            lateral = self.lateral[index](maps[index])
            coarser = lateral + resized(coarser, _size(lateral))
            fused.insert(0, resized(self.smooth[index](coarser), finest))
        return self.classifier(self.dropout(self.fuse(torch.cat(fused, dim=1))))


class FCNHead(nn.Module):
    """One convolution and a classifier on one map: the auxiliary head, used in training only."""

    def __init__(
        self, dim: int, *, num_classes: int, channels: int = 256, norm: str = "group", dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, channels, kernel_size=3, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = make_classifier(channels, num_classes)

    def forward(self, maps: Float[Tensor, "batch dim rows cols"]) -> Float[Tensor, "batch classes rows cols"]:
        return self.classifier(self.dropout(self.conv(maps)))


def make_classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution that gives class logits; normal initialization, zero bias."""
    classifier = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    assert classifier.bias is not None
    nn.init.zeros_(classifier.bias)
    return classifier


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
