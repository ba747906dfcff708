"""The segmentation model: a backbone, and a decoder on the patch tokens of some of its layers."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import InputError
from mambar.models.layer_tokens import freeze_unused, layer_tokens, probe_tokens
from mambar.models.protocol import Images, TokenModel
from mambar.nn.heads import RegisterHead
from mambar.nn.norm import RMSNorm
from mambar.nn.registers import Tokens
from mambar.segmentation.decoders import DECODERS, SegmenterConfig
from mambar.segmentation.resample import resized


class RegisterBroadcast(nn.Module):
    """Adds a projection of a register head's output to each patch token; zero-initialized."""

    def __init__(self, embed_dim: int, num_registers: int) -> None:
        super().__init__()
        self.norm = RMSNorm(embed_dim)
        self.read_out = RegisterHead(embed_dim, num_registers, register_reduction=1)
        self.project = nn.Linear(self.read_out.num_features, embed_dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, tokens: Tokens) -> Tokens:
        registers = self.norm(tokens.registers)
        features = self.read_out(dataclasses.replace(tokens, registers=registers))
        return dataclasses.replace(tokens, patches=tokens.patches + self.project(features)[:, None])


class Segmenter(nn.Module):
    """Class logits for each pixel: `TokenModel` → feature maps of some layers → decoder → image size.

    The backbone is a Mamba-R, a Vim or one of timm's ViTs. Only patch tokens become maps; registers stay in the
    backbone's sequence. Each layer has its own RMS norm, since the norm of the residual stream grows with depth. Images
    may have any size: they are zero-padded on the right and bottom to whole patches, and positions are resized.

    Keyword arguments are fields of `SegmenterConfig`, in place of those of `config`.

    Attributes:
        classes: class names of a trained model.
        palette: color of each class of a trained model.
        preprocessing: preprocessing of a trained model.
        layers: indices of the backbone layers that the decoder reads.
    """

    def __init__(self, backbone: TokenModel, config: SegmenterConfig | None = None, **fields: Any) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise InputError(f"backbone={type(backbone).__name__} is not an nn.Module with tokens(images, layers).")
        self.config = SegmenterConfig.from_dict({**(config.to_dict() if config else {}), **fields})
        self.classes: tuple[str, ...] | None = None
        self.palette: tuple[tuple[int, int, int], ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self.backbone = backbone
        self.layers = self.config.layer_indices(backbone.num_layers)
        self.norms = nn.ModuleList(RMSNorm(backbone.embed_dim) for _ in self.layers)
        self.broadcast: nn.Module = nn.Identity()
        if self.config.broadcast:
            self.broadcast = RegisterBroadcast(
                backbone.embed_dim, probe_tokens(backbone, self.layers[-1:]).registers.shape[1]
            )
        decoder = DECODERS[self.config.decoder]
        self.decoder = decoder(self.config, backbone.embed_dim, backbone.patch_size, num_layers=len(self.layers))
        freeze_unused(backbone, self.layers)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.config.num_classes

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.backbone.patch_size

    @property
    def num_layers(self) -> int:
        """Number of blocks of the backbone."""
        return self.backbone.num_layers

    def freeze_backbone(self) -> None:
        """Freezes the backbone; the decoder and the norms before it stay trainable."""
        self.backbone.requires_grad_(False)

    def maps(self, images: Images) -> list[Float[Tensor, "batch dim rows cols"]]:
        """The input of the decoder: normalized patch tokens of each of `layers` as a map."""
        selected = layer_tokens(self.backbone, images, self.layers)
        if isinstance(self.broadcast, RegisterBroadcast):
            selected[-1] = self.broadcast(selected[-1])
        return [
            dataclasses.replace(tokens, patches=norm(tokens.patches)).map()
            for norm, tokens in zip(self.norms, selected, strict=True)
        ]

    def coarse_logits(self, images: Images) -> Float[Tensor, "batch classes rows cols"]:
        """The logits at the resolution of the decoder, for the padded image."""
        return self.decoder(self.maps(images))

    def forward(self, images: Images) -> Float[Tensor, "batch classes height width"]:
        return self.upsample_logits(self.coarse_logits(images), (images.shape[-2], images.shape[-1]))

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image after padding to whole patches."""
        rows, cols = (-(-side // self.patch_size) * self.patch_size for side in size)
        return rows, cols

    def upsample_logits(
        self, logits: Float[Tensor, "batch classes rows cols"], size: tuple[int, int]
    ) -> Float[Tensor, "batch classes height width"]:
        """Coarse logits resized bilinearly, in at least float32, and cropped to `size` (height, width)."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return resized(logits, self.padded_size(size))[..., : size[0], : size[1]]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the backbone exempts from weight decay."""
        exempt = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in exempt()}
