"""Autoregressive pre-training: predicts the pixels of each square cluster of patches from the preceding clusters.

Method of ARM (arXiv 2406.07537). The backbone reads the patches cluster by cluster with a causal mixer, so that a
token never depends on later clusters. The registers keep their positions in the sequence: a register depends only on
the patches before it, and the decoder reads it only for clusters that begin after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.models.timm_vit import as_vision_mamba
from mambar.nn.placement import Grid
from mambar.pretraining.pixel_decoder import DecoderOptions, PixelDecoder, PixelPredictionTask, normalized_pixels
from mambar.training import fields
from mambar.training.recipe import Recipe, Stage
from mambar.training.task_registry import register_task

_ALLOWED: Final[fields.Allowed] = (("1 to 64", lambda value: 1 <= value <= 64, ("cluster",)),)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveOptions(DecoderOptions):
    """The `task_options` of `task=autoregressive`."""

    # Side of a cluster in patches.
    cluster: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_fields(self, _ALLOWED, prefix="task_options.")


class NextClusterModel(nn.Module):
    """A causal backbone and the decoder that predicts the pixels of every cluster but the first."""

    def __init__(self, backbone: nn.Module, options: AutoregressiveOptions) -> None:
        super().__init__()
        self.backbone = as_vision_mamba(backbone, "Autoregressive pre-training")
        if self.backbone.config.mixer != "forward":
            raise InputError("Autoregressive pre-training needs a causal mixer; set config.mixer=forward.")
        # The loss does not use the head.
        self.backbone.head.requires_grad_(False)
        self.cluster = options.cluster
        self.decoder = PixelDecoder(self.backbone, options)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch clusters patches values"], Float[Tensor, "batch clusters patches values"]]:
        """Predicted and normalized pixels of the patches of clusters 1, 2, …"""
        model = self.backbone
        grid = model.patch_embed.grid(images)
        order = cluster_order(grid, self.cluster).to(images.device)
        patches = model.pos_embed(model.patch_embed(images), grid)[:, order]
        tokens = model.registers(patches, grid)
        mask = self._mask(grid, tokens.shape[1]).to(images.device)
        later = order[self.cluster**2 :]
        queries = self.decoder.positions(grid).to(tokens)[later].expand(len(images), -1, -1)
        predicted = self.decoder(model, tokens, grid, queries, mask)
        target = normalized_pixels(images, model.patch_size)[:, later]
        clusters = (-1, self.cluster**2)
        return predicted.unflatten(1, clusters), target.unflatten(1, clusters)

    def predicted_patches(self, images: Float[Tensor, "batch channels height width"]) -> Int64[Tensor, "batch patches"]:
        """The numbers of the patches that `forward` predicts, in its order."""
        order = cluster_order(self.backbone.patch_embed.grid(images), self.cluster)
        return order[self.cluster**2 :].expand(len(images), -1)

    def _mask(self, grid: Grid, length: int) -> Bool[Tensor, "queries length"]:
        """Each patch of a cluster reads the tokens before the cluster's first patch."""
        num_patches, size = grid[0] * grid[1], self.cluster**2
        registers = set(self.backbone.registers.positions(num_patches, grid))
        positions = torch.tensor([position for position in range(length) if position not in registers])
        return torch.arange(length) < positions[size::size].repeat_interleave(size)[:, None]


def cluster_order(grid: Grid, cluster: int) -> Int64[Tensor, "patches"]:
    """The patch numbers cluster by cluster, both in raster order; InputError if the grid cannot be divided."""
    rows, cols = grid
    if rows % cluster or cols % cluster or (rows, cols) == (cluster, cluster):
        raise InputError(
            f"A grid of {rows} × {cols} patches cannot be cut into two or more clusters of {cluster} × {cluster}; "
            "change img_size or task_options.cluster."
        )
    numbers = torch.arange(rows * cols).reshape(rows // cluster, cluster, cols // cluster, cluster)
    return numbers.transpose(1, 2).flatten()


@register_task("autoregressive")
class AutoregressiveTask(PixelPredictionTask):
    """Mean squared error of the next cluster's normalized pixels."""

    def __init__(self, recipe: Recipe, stage: Stage, *, classes: Sequence[str]) -> None:
        super().__init__(recipe, stage, classes=classes)
        self.decoder = fields.task_options(AutoregressiveOptions, recipe.task_options, task="autoregressive")

    def build_model(self, backbone: nn.Module) -> nn.Module:
        """The backbone with the decoder."""
        return NextClusterModel(backbone, self.decoder)
