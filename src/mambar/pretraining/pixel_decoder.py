"""What tasks that predict pixels share: normalized target pixels, the decoder, loss and evaluation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from mambar.data.dataset import ImageDataset
from mambar.data.loading.loaders import Batch
from mambar.errors import InputError, RecipeError
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.placement import Grid
from mambar.training import fields
from mambar.training.recipe import Recipe
from mambar.training.task import EvalResult, EvaluationContext, Task, mean_loss

_ALLOWED: Final[fields.Allowed] = (
    ("1 to 64", lambda value: 1 <= value <= 64, ("decoder_heads", "decoder_depth")),
    ("1 to 16,384", lambda value: 1 <= value <= 1 << 14, ("decoder_dim",)),
)


@dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """Width, attention heads and number of the decoder's blocks; each block reads a different layer of the backbone."""

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
        mask: Bool[Tensor, "queries length"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """`mask` is True where a query may read a token; None: everywhere."""
        parts = (self.q(self.norm1(queries)), *self.kv(tokens).chunk(2, dim=2))
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        queries = queries + self.proj(read.transpose(1, 2).flatten(2))
        return queries + self.mlp(self.norm2(queries))


class PixelDecoder(nn.Module):
    """Runs the blocks of a backbone and predicts the pixels of patches from the tokens of several layers."""

    def __init__(self, backbone: VisionMamba, options: DecoderOptions) -> None:
        super().__init__()
        depth, dim = backbone.num_layers, options.decoder_dim
        if options.decoder_depth > depth:
            raise InputError(f"task_options.decoder_depth={options.decoder_depth} exceeds the {depth} blocks.")
        self.layers = [(index + 1) * depth // options.decoder_depth - 1 for index in range(options.decoder_depth)]
        width, outputs = backbone.embed_dim, backbone.in_chans * backbone.patch_size**2
        norms = [nn.LayerNorm(width) for _ in self.layers[1:]]
        self.inputs = nn.ModuleList(nn.Sequential(norm, nn.Linear(width, dim)) for norm in [*norms, nn.Identity()])
        self.blocks = nn.ModuleList(CrossAttentionBlock(dim, options.decoder_heads) for _ in self.layers)
        self.norm, self.pixels = nn.LayerNorm(dim), nn.Linear(dim, outputs)

    def positions(self, grid: Grid) -> Float[Tensor, "patches dim"]:
        """The queries of the patches: fixed sine and cosine positions, as in MAE."""
        from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

        return build_sincos2d_pos_embed(list(grid), self.norm.normalized_shape[0])

    def forward(
        self,
        backbone: VisionMamba,
        tokens: Float[Tensor, "batch length dim"],
        grid: Grid,
        queries: Float[Tensor, "batch queries width"],
        mask: Bool[Tensor, "queries length"] | None = None,
    ) -> Float[Tensor, "batch queries values"]:
        """The pixels of the queries' patches; `tokens` are the embedded tokens in front of the first block."""
        reads = iter(zip(self.inputs, self.blocks, strict=True))
        for index, block in enumerate(backbone.blocks):
            tokens = backbone.run_block(block, tokens, grid)
            if index in self.layers:
                project, decoder = next(reads)
                stream = backbone.norm(tokens) if index == backbone.num_layers - 1 else tokens
                queries = decoder(queries, project(stream), mask)
        return self.pixels(self.norm(queries))


def normalized_pixels(
    images: Float[Tensor, "batch channels height width"], patch_size: int
) -> Float[Tensor, "batch patches values"]:
    """The pixels of each patch with zero mean and unit variance, as in MAE (arXiv 2111.06377)."""
    pixels = functional.unfold(images.float(), patch_size, stride=patch_size).transpose(1, 2)
    variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
    return (pixels - mean) / (variance + 1e-6).sqrt()


class PixelPredictionTask(Task):
    """Mean squared error of a model that returns predicted and target pixels; `val_loss` selects the best weights.

    The model's method `predicted_patches(images)` gives the numbers of these patches, for the pictures of the report.
    """

    dataset_kind = "images"

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The error averaged over the predicted patches and their pixels."""
        predicted, target = model(batch.images)
        return {"loss": functional.mse_loss(predicted.float(), target)}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
        """The same error on validation images."""

        def losses(images: Tensor) -> Tensor:
            predicted, target = model(images)
            return (predicted.float() - target).square().flatten(1).mean(1)

        return mean_loss(losses, batches, context)

    def report_contents(
        self, model: nn.Module, *, backbone: nn.Module, recipe: Recipe, result: EvalResult, val_set: ImageDataset
    ) -> dict[str, Any]:
        """The loss, and validation images with their prediction."""
        from mambar.pretraining.pixel_report import contents

        return contents(model, metrics=result.metrics, val_set=val_set, preprocessing=self.preprocessing)
