"""Decoders and their configuration: from the feature maps of backbone layers to class logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.json_fields import check_choices, from_json_fields, to_json_fields
from mambar.models.layer_tokens import spaced_layers
from mambar.nn.pyramid import MAP_NORMS, FeaturePyramid
from mambar.segmentation.upernet import UPerHead, make_classifier


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Configuration of the decoder.

    Attributes:
        num_classes: number of classes.
        layers: indices (from 0) of the backbone layers that the decoder reads; None for as many as it takes, evenly
            spaced (5, 11, 17, 23 of 24 layers).
        decoder: a key of `DECODERS`.
        channels: channels of the decoder.
        norm: a key of `MAP_NORMS`.
        dropout: probability of dropping a channel before the classifier.
        broadcast: add the output of a register head to each patch token of the last layer read.
    """

    num_classes: int = 150
    layers: tuple[int, ...] | None = None
    decoder: str = "upernet"
    channels: int = 512
    norm: str = "group"
    dropout: float = 0.1
    broadcast: bool = False

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        for name in ("num_classes", "channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name}={value!r} must be a whole number of at least 1.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} must be at least 0 and below 1.")
        check_choices(self, decoder=DECODERS, norm=MAP_NORMS)

    def layer_indices(self, depth: int) -> tuple[int, ...]:
        """The layers read of a backbone with `depth` blocks; raises `InputError` if they do not fit."""
        count = DECODERS[self.decoder].num_layers
        if self.layers is None:
            return spaced_layers(depth, count)
        if count > 1 and len(self.layers) != count:
            raise InputError(f"layers={self.layers}: decoder={self.decoder!r} takes {count} layers.")
        if not self.layers or not all(0 <= layer < depth for layer in self.layers):
            raise InputError(f"layers={self.layers} must all be backbone layers 0 to {depth - 1}.")
        return self.layers

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return to_json_fields(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "SegmenterConfig":
        """The inverse of `to_dict`; raises `InputError` with the nearest name for an unknown field."""
        return from_json_fields(cls, fields, what="a segmenter")


class UPerDecoder(nn.Module):
    """UPerNet's head on a feature pyramid of four layers; logits every 4 pixels, or every patch if smaller."""

    num_layers = 4

    def __init__(self, config: SegmenterConfig, embed_dim: int, patch_size: int, *, num_layers: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(embed_dim, patch_size, norm=config.norm)
        self.head = UPerHead(
            [embed_dim] * 4,
            num_classes=config.num_classes,
            channels=config.channels,
            norm=config.norm,
            dropout=config.dropout,
        )

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

    def __init__(self, config: SegmenterConfig, embed_dim: int, patch_size: int, *, num_layers: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = make_classifier(num_layers * embed_dim, config.num_classes)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch dim rows cols"]]
    ) -> Float[Tensor, "batch classes map_rows map_cols"]:
        return self.classifier(self.dropout(torch.cat(list(maps), dim=1)))


DECODERS: dict[str, type[UPerDecoder] | type[LinearDecoder]] = {"upernet": UPerDecoder, "linear": LinearDecoder}
