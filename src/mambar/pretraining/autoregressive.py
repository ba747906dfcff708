"""Autoregressive pre-training: predicts the pixels of each square cluster of patches from the preceding clusters.

Method of ARM (arXiv 2406.07537). The backbone reads the patches cluster by cluster with a causal mixer, so that a
token never depends on later clusters. The registers keep their positions in the sequence: a register depends only on
the patches before it, and the decoder reads it only for clusters that begin after it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from mambar.data.loading.loaders import Batch
from mambar.errors import InputError, RecipeError
from mambar.models.timm_vit import as_vision_mamba
from mambar.nn.placement import Grid
from mambar.training import fields
from mambar.training.recipe import Recipe, Stage
from mambar.training.task import EvalResult, EvaluationContext, Task, mean_loss
from mambar.training.task_registry import register_task

_ALLOWED: fields.Allowed = (
    ("1 to 64", lambda value: 1 <= value <= 64, ("cluster", "decoder_heads", "decoder_depth")),
    ("1 to 16,384", lambda value: 1 <= value <= 1 << 14, ("decoder_dim",)),
)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveOptions:
    """The `task_options` of `task=autoregressive`."""

    # Side of a cluster in patches.
    cluster: int = 4
    # Width, attention heads and number of the decoder's blocks; each block reads a different layer of the backbone.
    decoder_dim: int = 512
    decoder_heads: int = 8
    decoder_depth: int = 4

    def __post_init__(self) -> None:
        fields.check_fields(self, _ALLOWED, prefix="task_options.")
        if self.decoder_dim % (4 * self.decoder_heads):
            raise RecipeError(
                f"task_options.decoder_dim={self.decoder_dim} must be a multiple of 4 times decoder_heads="
                f"{self.decoder_heads}."
            )


class CrossAttentionBlock(nn.Module):
    """Attention of the queries to the encoder's tokens, then an MLP, both after a norm and with a residual."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self,
        queries: Float[Tensor, "batch queries dim"],
        tokens: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "queries length"],
    ) -> Float[Tensor, "batch queries dim"]:
        """`mask` is True where a query may read a token."""
        parts = (self.q(self.norm1(queries)), *self.kv(tokens).chunk(2, dim=2))
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        queries = queries + self.proj(read.transpose(1, 2).flatten(2))
        return queries + self.mlp(self.norm2(queries))


class NextClusterModel(nn.Module):
    """A causal backbone and the decoder that predicts the pixels of every cluster but the first."""

    def __init__(self, backbone: nn.Module, options: AutoregressiveOptions) -> None:
        super().__init__()
        self.backbone = as_vision_mamba(backbone, "Autoregressive pre-training")
        if self.backbone.config.mixer != "forward":
            raise InputError("Autoregressive pre-training needs a causal mixer; set config.mixer=forward.")
        # The loss does not use the head.
        self.backbone.head.requires_grad_(False)
        depth, dim = self.backbone.num_layers, options.decoder_dim
        if options.decoder_depth > depth:
            raise InputError(f"task_options.decoder_depth={options.decoder_depth} exceeds the {depth} blocks.")
        self.cluster = options.cluster
        self.layers = [(index + 1) * depth // options.decoder_depth - 1 for index in range(options.decoder_depth)]
        width, outputs = self.backbone.embed_dim, self.backbone.in_chans * self.backbone.patch_size**2
        norms = [nn.LayerNorm(width) for _ in self.layers[1:]]
        self.inputs = nn.ModuleList(nn.Sequential(norm, nn.Linear(width, dim)) for norm in [*norms, nn.Identity()])
        self.blocks = nn.ModuleList(CrossAttentionBlock(dim, options.decoder_heads) for _ in self.layers)
        self.norm, self.pixels = nn.LayerNorm(dim), nn.Linear(dim, outputs)

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
        queries = _positions(grid, self.norm.normalized_shape[0]).to(tokens)[later].expand(len(images), -1, -1)
        reads = iter(zip(self.inputs, self.blocks, strict=True))
        for index, block in enumerate(model.blocks):
            tokens = model.run_block(block, tokens, grid)
            if index in self.layers:
                project, decoder = next(reads)
                stream = model.norm(tokens) if index == model.num_layers - 1 else tokens
                queries = decoder(queries, project(stream), mask)
        predicted = self.pixels(self.norm(queries)).unflatten(1, (-1, self.cluster**2))
        return predicted, _normalized_pixels(images, model.patch_size)[:, later].unflatten(1, (-1, self.cluster**2))

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


def _positions(grid: Grid, dim: int) -> Float[Tensor, "patches dim"]:
    """Fixed sine and cosine positions of the patches, as in MAE."""
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    return build_sincos2d_pos_embed(list(grid), dim)


def _normalized_pixels(
    images: Float[Tensor, "batch channels height width"], patch_size: int
) -> Float[Tensor, "batch patches values"]:
    """The pixels of each patch with zero mean and unit variance, as in MAE (arXiv 2111.06377)."""
    pixels = functional.unfold(images.float(), patch_size, stride=patch_size).transpose(1, 2)
    variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
    return (pixels - mean) / (variance + 1e-6).sqrt()


@register_task("autoregressive")
class AutoregressiveTask(Task):
    """Mean squared error of the next cluster's normalized pixels; `val_loss` selects the best weights."""

    def __init__(self, recipe: Recipe, stage: Stage, *, classes: Sequence[str]) -> None:
        super().__init__(recipe, stage, classes=classes)
        self.decoder = fields.task_options(AutoregressiveOptions, recipe.task_options, task="autoregressive")

    def build_model(self, backbone: nn.Module) -> nn.Module:
        """The backbone with the decoder."""
        return NextClusterModel(backbone, self.decoder)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The error averaged over clusters, patches and pixels."""
        predicted, target = model(batch.images)
        return {"loss": functional.mse_loss(predicted.float(), target)}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
        """The same error on validation images."""

        def losses(images: Tensor) -> Tensor:
            predicted, target = model(images)
            return (predicted.float() - target).square().flatten(1).mean(1)

        return mean_loss(losses, batches, context)
