"""Masked pre-training: predicts the pixels of randomly masked patches from the visible ones.

Target and masking ratio are those of MAE (arXiv 2111.06377). Masked patches are replaced by a learned token in front
of the first block, as in SimMIM (arXiv 2111.09886), and not removed: a Mamba reads a sequence, whose order and register
positions stay those of fine-tuning. The decoder is that of the autoregressive task. It predicts all masked patches at
once; MAP (arXiv 2410.00871) masks half of the patches and predicts them row by row.

The registers keep their positions in the sequence. Neither they nor the other tokens depend on a masked pixel, so the
decoder reads all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.models.timm_vit import as_vision_mamba
from mambar.nn.init import init_tokens
from mambar.pretraining.pixel_decoder import DecoderOptions, PixelDecoder, PixelPredictionTask, normalized_pixels
from mambar.training import fields
from mambar.training.recipe import Recipe, Stage
from mambar.training.task_registry import register_task

_ALLOWED: Final[fields.Allowed] = (("above 0, below 1", lambda value: 0 < value < 1, ("mask_ratio",)),)
# Seed of the masks in evaluation, which are the same in every epoch.
_EVALUATION_SEED: Final = 0


@dataclass(frozen=True, kw_only=True)
class MaskedOptions(DecoderOptions):
    """The `task_options` of `task=masked`."""

    # Fraction of the patches that are masked; at least one patch is masked and one is visible.
    mask_ratio: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_fields(self, _ALLOWED, prefix="task_options.")


class MaskedPatchModel(nn.Module):
    """A backbone that reads masked images, and the decoder that predicts the pixels of the masked patches."""

    def __init__(self, backbone: nn.Module, options: MaskedOptions) -> None:
        super().__init__()
        self.backbone = as_vision_mamba(backbone, "Masked pre-training")
        # The loss does not use the head.
        self.backbone.head.requires_grad_(False)
        self.mask_ratio = options.mask_ratio
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.backbone.embed_dim))
        init_tokens([self.mask_token])
        self.decoder = PixelDecoder(self.backbone, options)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch masked values"], Float[Tensor, "batch masked values"]]:
        """Predicted and normalized pixels of the masked patches, which are drawn again in each call of training."""
        model = self.backbone
        grid = model.patch_embed.grid(images)
        patches = model.patch_embed(images)
        masked = self._masked(len(images), grid[0] * grid[1]).to(images.device)
        mask = torch.zeros(patches.shape[:2], dtype=torch.bool, device=images.device).scatter_(1, masked, True)
        visible = torch.where(mask[:, :, None], self.mask_token.to(patches.dtype), patches)
        tokens = model.registers(model.pos_embed(visible, grid), grid)
        queries = self.decoder.positions(grid).to(tokens)[masked]
        target = normalized_pixels(images, model.patch_size)
        target = target.gather(1, masked[:, :, None].expand(-1, -1, target.shape[2]))
        return self.decoder(model, tokens, grid, queries), target

    def predicted_patches(self, images: Float[Tensor, "batch channels height width"]) -> Int64[Tensor, "batch patches"]:
        """The numbers of the patches that `forward` predicts in evaluation mode, in its order."""
        rows, cols = self.backbone.patch_embed.grid(images)
        return self._masked(len(images), rows * cols)

    def _masked(self, batch: int, num_patches: int) -> Int64[Tensor, "batch masked"]:
        """The numbers of the masked patches of each image, in ascending order."""
        if num_patches < 2:
            raise InputError("An image of one patch cannot be masked in part; raise img_size or lower patch_size.")
        count = min(max(round(self.mask_ratio * num_patches), 1), num_patches - 1)
        generator = None if self.training else torch.Generator().manual_seed(_EVALUATION_SEED)
        noise = torch.rand(batch, num_patches, generator=generator)
        return noise.argsort(1)[:, :count].sort(1).values


@register_task("masked")
class MaskedTask(PixelPredictionTask):
    """Mean squared error of the masked patches' normalized pixels."""

    def __init__(self, recipe: Recipe, stage: Stage, *, classes: Sequence[str]) -> None:
        super().__init__(recipe, stage, classes=classes)
        self.masking = fields.task_options(MaskedOptions, recipe.task_options, task="masked")

    def build_model(self, backbone: nn.Module) -> nn.Module:
        """The backbone with mask token and decoder."""
        return MaskedPatchModel(backbone, self.masking)
