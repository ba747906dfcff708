"""What turns the tapped layers' maps into class logits: one class a decoder, all in one table."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.nn.pyramid import FeaturePyramid
from mambar.segmentation.upernet import UPerHead


@runtime_checkable
class Decoder(Protocol):
    """Maps of the tapped layers (one size) → logits at a size of its own."""

    def __call__(
        self, maps: Sequence[Float[Tensor, "batch dim rows cols"]]
    ) -> Float[Tensor, "batch classes map_rows map_cols"]: ...


class UPerDecoder(nn.Module):
    """The feature pyramid of four layers under UPerNet's head; logits every 4 pixels (or every patch)."""

    num_layers = 4

    def __init__(
        self, dim: int, patch_size: int, *, num_layers: int, num_classes: int, channels: int, norm: str, dropout: float
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(dim, patch_size, norm=norm)
        self.head = UPerHead([dim] * 4, num_classes=num_classes, channels=channels, norm=norm, dropout=dropout)

    @property
    def classifier(self) -> nn.Conv2d:
        """The layer that gives logits."""
        return self.head.classifier

    def forward(
        self, maps: Sequence[Float[Tensor, "batch dim rows cols"]]
    ) -> Float[Tensor, "batch classes map_rows map_cols"]:
        return self.head(self.pyramid(maps))


class LinearDecoder(nn.Module):
    """One linear map of each patch token (those of several layers side by side): how much the features know.

    The probe of DINOv2 and "Vision Transformers Need Registers"; logits every patch.
    """

    num_layers = 1

    def __init__(
        self, dim: int, patch_size: int, *, num_layers: int, num_classes: int, channels: int, norm: str, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(num_layers * dim, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch dim rows cols"]]
    ) -> Float[Tensor, "batch classes map_rows map_cols"]:
        return self.classifier(self.dropout(torch.cat(list(maps), dim=1)))


DECODERS: dict[str, type[UPerDecoder] | type[LinearDecoder]] = {"upernet": UPerDecoder, "linear": LinearDecoder}
