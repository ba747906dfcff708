"""Decoders: from the feature maps of backbone layers to class logits."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.nn.pyramid import FeaturePyramid
from mambar.segmentation.upernet import UPerHead, make_classifier


@runtime_checkable
class Decoder(Protocol):
    """Feature maps of one size → logits, at the resolution of the decoder."""

    def __call__(
        self, maps: Sequence[Float[Tensor, "batch dim rows cols"]]
    ) -> Float[Tensor, "batch classes map_rows map_cols"]: ...


class UPerDecoder(nn.Module):
    """UPerNet's head on a feature pyramid of four layers; logits every 4 pixels, or every patch if smaller."""

    num_layers = 4

    def __init__(
        self,
        embed_dim: int,
        patch_size: int,
        *,
        num_layers: int,
        num_classes: int,
        channels: int,
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(embed_dim, patch_size, norm=norm)
        self.head = UPerHead([embed_dim] * 4, num_classes=num_classes, channels=channels, norm=norm, dropout=dropout)

    @property
    def classifier(self) -> nn.Conv2d:
        """The last layer, which outputs logits."""
        return self.head.classifier

    def forward(
        self, maps: Sequence[Float[Tensor, "batch dim rows cols"]]
    ) -> Float[Tensor, "batch classes map_rows map_cols"]:
        return self.head(self.pyramid(maps))


class LinearDecoder(nn.Module):
    """A linear classifier on each patch token, whose layers are concatenated; logits every patch.

    The linear probe of DINOv2 and "Vision Transformers Need Registers".
    """

    num_layers = 1

    def __init__(
        self,
        embed_dim: int,
        patch_size: int,
        *,
        num_layers: int,
        num_classes: int,
        channels: int,
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = make_classifier(num_layers * embed_dim, num_classes)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch dim rows cols"]]
    ) -> Float[Tensor, "batch classes map_rows map_cols"]:
        return self.classifier(self.dropout(torch.cat(list(maps), dim=1)))


DECODERS: dict[str, type[UPerDecoder] | type[LinearDecoder]] = {"upernet": UPerDecoder, "linear": LinearDecoder}
