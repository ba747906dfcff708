"""The segmenter: a backbone's patch tokens become maps, a decoder names every pixel's class."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import InputError
from mambar.messages import did_you_mean
from mambar.models.protocol import TokenModel
from mambar.nn.heads import RegisterHead
from mambar.nn.norm import RMSNorm
from mambar.nn.pyramid import MAP_NORMS
from mambar.nn.registers import Tokens
from mambar.segmentation.decoders import DECODERS
from mambar.segmentation.resample import resized


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """What stands on the backbone, checked when made.

    layers: the tapped layers, counted from 0 (None: as many as the decoder takes, at equal parts of the depth;
    5, 11, 17, 23 of 24). decoder: a key of `DECODERS`. channels: the decoder's width. norm: a key of `MAP_NORMS`.
    dropout: of whole channels in front of the classifier. broadcast: adds what a register head reads to every
    patch token of the last tapped layer.
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
        for name, table in (("decoder", DECODERS), ("norm", MAP_NORMS)):
            if getattr(self, name) not in table:
                raise InputError(f"{name}={getattr(self, name)!r} is not known; choose one of {', '.join(table)}.")

    def layer_indices(self, depth: int) -> tuple[int, ...]:
        """The tapped layers of a backbone of `depth` blocks; raises `InputError` where they do not fit."""
        count = DECODERS[self.decoder].num_layers
        if self.layers is None:
            # A backbone of fewer layers than the decoder takes gives some of them twice.
            return tuple(max(round(depth * (index + 1) / count) - 1, 0) for index in range(count))
        if count > 1 and len(self.layers) != count:
            raise InputError(f"layers={self.layers}: decoder={self.decoder!r} takes {count} layers.")
        if not self.layers or not all(0 <= layer < depth for layer in self.layers):
            raise InputError(f"layers={self.layers} are not all among the backbone's layers 0 to {depth - 1}.")
        return self.layers

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "SegmenterConfig":
        """Undoes `to_dict`; an unknown field raises `InputError` with the nearest right name."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                hint = did_you_mean(name, known, otherwise=f"choose from {', '.join(known)}.")
                raise InputError(f"A segmenter has no field {name!r}; {hint}")
        layers = fields.get("layers")
        return cls(**{**fields, "layers": None if layers is None else tuple(layers)})


class RegisterBroadcast(nn.Module):
    """Adds what a register head reads of the registers to every patch token; starts by adding nothing."""

    def __init__(self, dim: int, num_registers: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.read_out = RegisterHead(dim, num_registers, register_reduction=1)
        self.project = nn.Linear(self.read_out.num_features, dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, tokens: Tokens) -> Tokens:
        registers = self.norm(tokens.registers)
        seen = self.read_out(dataclasses.replace(tokens, registers=registers))
        return dataclasses.replace(tokens, patches=tokens.patches + self.project(seen)[:, None])


class Segmenter(nn.Module):
    """Class logits for every pixel: `TokenModel` → maps of some layers → decoder → the image's size.

    Works for Mamba-R, Vim and timm's ViTs. Registers stay in the backbone's sequence; only patch tokens become maps,
    each tapped layer through an RMS norm of its own, since the residual stream's norm grows with depth. Any image
    size: the image is filled up with zeros to whole patches at the right and below, positions are resized.

    A trained one carries its class names, colors and preprocessing in `classes`, `palette`, `preprocessing`.
    """

    def __init__(
        self,
        backbone: TokenModel,
        *,
        num_classes: int = 150,
        layers: Sequence[int] | None = None,
        decoder: str = "upernet",
        channels: int = 512,
        norm: str = "group",
        dropout: float = 0.1,
        broadcast: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise InputError(f"backbone={type(backbone).__name__} is no torch module with tokens(images, layers).")
        self.config = SegmenterConfig(
            num_classes=num_classes,
            layers=None if layers is None else tuple(layers),
            decoder=decoder,
            channels=channels,
            norm=norm,
            dropout=dropout,
            broadcast=broadcast,
        )
        self.classes: tuple[str, ...] | None = None
        self.palette: tuple[tuple[int, int, int], ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self.backbone = backbone
        self.layers = self.config.layer_indices(backbone.num_layers)
        self.norms = nn.ModuleList(RMSNorm(backbone.embed_dim) for _ in self.layers)
        self.broadcast: nn.Module = nn.Identity()
        if broadcast:
            self.broadcast = RegisterBroadcast(
                backbone.embed_dim, _probe(backbone, self.layers[-1:]).registers.shape[1]
            )
        self.decoder = DECODERS[decoder](
            backbone.embed_dim,
            backbone.patch_size,
            num_layers=len(self.layers),
            num_classes=num_classes,
            channels=channels,
            norm=norm,
            dropout=dropout,
        )
        _freeze_unread(backbone, self.layers)

    @property
    def num_classes(self) -> int:
        """The classes a pixel can have."""
        return self.config.num_classes

    @property
    def patch_size(self) -> int:
        """The side of a patch in pixels."""
        return self.backbone.patch_size

    @property
    def num_layers(self) -> int:
        """The backbone's blocks."""
        return self.backbone.num_layers

    def freeze_backbone(self) -> None:
        """Takes the backbone out of training: only the decoder and the norms in front of it learn."""
        self.backbone.requires_grad_(False)

    def maps(self, images: Float[Tensor, "batch channels height width"]) -> list[Float[Tensor, "batch dim rows cols"]]:
        """The tapped layers' normalized patch tokens as maps, what the decoder reads."""
        images = _filled_up(images, self.patch_size)
        frozen = not any(parameter.requires_grad for parameter in self.backbone.parameters())
        # The same layer may be tapped twice; it is computed once.
        wanted = sorted(set(self.layers))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            found = dict(zip(wanted, self.backbone.tokens(images, wanted), strict=True))
        tapped = [found[layer] for layer in self.layers]
        if isinstance(self.broadcast, RegisterBroadcast):
            tapped[-1] = self.broadcast(tapped[-1])
        return [
            dataclasses.replace(tokens, patches=norm(tokens.patches)).map()
            for norm, tokens in zip(self.norms, tapped, strict=True)
        ]

    def coarse_logits(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes rows cols"]:
        """The decoder's own logits, a fraction of the image's size; they cover the filled-up image."""
        return self.decoder(self.maps(images))

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes height width"]:
        return self.upsample_logits(self.coarse_logits(images), (images.shape[-2], images.shape[-1]))

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """An image's (height, width) filled up to whole patches."""
        rows, cols = (-(-side // self.patch_size) * self.patch_size for side in size)
        return rows, cols

    def upsample_logits(
        self, logits: Float[Tensor, "batch classes rows cols"], size: tuple[int, int]
    ) -> Float[Tensor, "batch classes height width"]:
        """Coarse logits, resized bilinearly in at least float32 to an image of `size` (height, width)."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return resized(logits, self.padded_size(size))[..., : size[0], : size[1]]

    def no_weight_decay(self) -> set[str]:
        """The backbone's exempt names, as they are called here."""
        exempt = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in exempt()}


def _filled_up(images: Tensor, patch_size: int) -> Tensor:
    below, right = (-images.shape[-2] % patch_size, -images.shape[-1] % patch_size)
    return nn.functional.pad(images, (0, right, 0, below)) if below or right else images


def _probe(backbone: TokenModel, layers: Sequence[int]) -> Tokens:
    assert isinstance(backbone, nn.Module)
    like = next(backbone.parameters())
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    side = 2 * backbone.patch_size
    return backbone.tokens(torch.zeros(1, channels, side, side, device=like.device, dtype=like.dtype), layers)[-1]


def _freeze_unread(backbone: TokenModel, layers: Sequence[int]) -> None:
    """Takes the parameters that no tapped layer depends on (final norm, classifier, later blocks) out of training."""
    assert isinstance(backbone, nn.Module)
    learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not learning:
        return
    with torch.enable_grad():
        # Registers of the last tapped layer see everything before them; so do patches.
        patches = _probe(backbone, [max(layers)]).patches
        reached = torch.autograd.grad(patches.sum(), learning, allow_unused=True)
    for parameter, gradient in zip(learning, reached, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
