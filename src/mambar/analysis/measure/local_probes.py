"""What tokens still know of their own patch: where it lies and what its pixels are, for normal and outlier tokens.

The probes of "Vision Transformers Need Registers" (Darcet et al., 2024): outlier tokens lose this local information.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mambar.analysis.measure.collect import Progress, model_device
from mambar.analysis.measure.norms import eval_mode, l2_norms, layer_indices
from mambar.analysis.measure.outliers import MedianDeviation, OutlierRule
from mambar.analysis.measure.probes import wilson_interval
from mambar.analysis.measure.ridge import Ridge, fit_ridge
from mambar.data.keys import key, permutation
from mambar.errors import InputError
from mambar.models.protocol import TokenModel, TokenTensor
from mambar.nn import Tokens

# Tokens are many, so little penalty is needed; each strength costs a product of all tokens with all places.
_STRENGTHS = (1e-6, 1e-4, 1e-2)
# Images whose pixels are drawn together.
_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class LocalProbe:
    """One group of held-out tokens.

    position_accuracy: share (0-1) of tokens whose place in the grid is guessed exactly, with its 95 % interval;
    position_distance: mean distance of the guess, in patches. pixel_error: root mean squared error of the patch's
    pixels, in the units of the images; explained: 1 - squared error / squared error of the mean patch.
    """

    group: str
    num_tokens: int
    position_accuracy: float
    position_low: float
    position_high: float
    position_distance: float
    pixel_error: float
    explained: float


@dataclass(frozen=True, kw_only=True)
class LocalProbes:
    """The probes of one layer: normal tokens, outliers, all; chance is the accuracy of a blind guess of the place."""

    rule: str
    layer: int
    tensor: TokenTensor
    chance: float
    num_images: int
    groups: tuple[LocalProbe, ...]

    def to_dict(self) -> dict[str, object]:
        """The probes as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalTokens:
    """Tokens with what they should know: the place of their patch and its pixels."""

    tokens: Float[Tensor, "images patches dim"]
    pixels: Float[Tensor, "images patches values"]
    norms: Float[Tensor, "images patches"]
    grid: tuple[int, int]


def patch_pixels(
    images: Float[Tensor, "batch channels height width"], patch_size: int
) -> Float[Tensor, "batch patches values"]:
    """The pixels of each patch in row order; what does not fill a patch is left out."""
    rows, cols = images.shape[2] // patch_size, images.shape[3] // patch_size
    whole = images[:, :, : rows * patch_size, : cols * patch_size]
    return torch.nn.functional.unfold(whole, patch_size, stride=patch_size).transpose(1, 2)


def local_tokens(
    model: TokenModel,
    batches: Iterable[Float[Tensor, "_ channels height width"]],
    *,
    layer: int = -1,
    tensor: TokenTensor = "normed",
    ranking: TokenTensor = "residual",
    progress: Progress | None = None,
) -> LocalTokens:
    """All image tokens of the batches with their patches; memory grows with the images, so give a few hundred."""
    indices = layer_indices(model, [layer])
    device = model_device(model)
    tokens, pixels, norms = [], [], []
    found: Tokens | None = None
    with eval_mode(model):
        for images in batches:
            moved = images.to(device)
            found = model.tokens(moved, indices, tensor=tensor)[0]
            ranked = found if tensor == ranking else model.tokens(moved, indices, tensor=ranking)[0]
            tokens.append(found.patches.float().cpu())
            norms.append(l2_norms(ranked.patches).cpu())
            pixels.append(patch_pixels(images.cpu().float(), model.patch_size))
            if progress is not None:
                progress(sum(len(part) for part in tokens))
    if found is None:
        raise InputError("There are no images to probe; the batches are empty.")
    return LocalTokens(tokens=torch.cat(tokens), pixels=torch.cat(pixels), norms=torch.cat(norms), grid=found.grid)


def local_probes(
    local: LocalTokens,
    *,
    rule: OutlierRule | None = None,
    seed: int = 0,
    layer: int = -1,
    tensor: TokenTensor = "normed",
) -> LocalProbes:
    """Linear probes of place and pixels, fitted on the tokens of half of the images and tried on the other half.

    One ridge regression for all tokens; the groups differ only in which held-out tokens are counted. `layer` and
    `tensor` are only written into the result.
    """
    rule = rule or MedianDeviation()
    count, num_patches = local.tokens.shape[:2]
    if count < 2:
        raise InputError(f"Local probes need 2 images or more, {count} came: one half to fit, one to try.")
    order = torch.from_numpy(permutation(count, key(seed, "local-probe")))
    fit, held = order[: count // 2], order[count // 2 :]
    outliers = local.norms > rule.threshold(local.norms.flatten())

    places = torch.eye(num_patches, dtype=torch.float64)
    position = fit_ridge(local.tokens[fit].flatten(0, 1), places.repeat(len(fit), 1), strengths=_STRENGTHS)
    guessed = position.predict(local.tokens[held].flatten(0, 1)).argmax(1).reshape(len(held), num_patches)
    pixel = fit_ridge(local.tokens[fit].flatten(0, 1), local.pixels[fit].flatten(0, 1), strengths=_STRENGTHS)

    right = guessed == torch.arange(num_patches)
    away = _grid_distance(guessed, local.grid)
    by_part = [_pixel_errors(pixel, local, part) for part in held.split(_IMAGES)]
    errors, spread = (torch.cat(parts) for parts in zip(*by_part, strict=True))
    groups = {"normal": ~outliers[held], "outlier": outliers[held], "all": torch.ones_like(outliers[held])}
    return LocalProbes(
        rule=rule.name,
        layer=layer,
        tensor=tensor,
        chance=1 / num_patches,
        num_images=count,
        groups=tuple(_group(name, mask, right, away, errors, spread) for name, mask in groups.items()),
    )


def _pixel_errors(
    pixel: Ridge, local: LocalTokens, images: Int64[Tensor, "images"]
) -> tuple[Float[Tensor, "images patches"], Float[Tensor, "images patches"]]:
    """Mean squared errors of the drawn patches, and of the mean patch in their place."""
    wanted = local.pixels[images].double()
    drawn = pixel.predict(local.tokens[images].flatten(0, 1)).reshape(wanted.shape)
    return (drawn - wanted).square().mean(-1), (wanted - pixel.offset).square().mean(-1)


def _grid_distance(guessed: Tensor, grid: tuple[int, int]) -> Float[Tensor, "images patches"]:
    cols = grid[1]
    own = torch.arange(grid[0] * cols)
    down, right = guessed // cols - own // cols, guessed % cols - own % cols
    return (down.double().square() + right.double().square()).sqrt()


def _group(
    name: str,
    mask: Bool[Tensor, "images patches"],
    right: Bool[Tensor, "images patches"],
    away: Float[Tensor, "images patches"],
    errors: Float[Tensor, "images patches"],
    spread: Float[Tensor, "images patches"],
) -> LocalProbe:
    count = int(mask.sum())
    hits = int(right[mask].sum())
    low, high = wilson_interval(hits, count)
    whole = float(spread[mask].sum())
    return LocalProbe(
        group=name,
        num_tokens=count,
        position_accuracy=hits / count if count else math.nan,
        position_low=low,
        position_high=high,
        position_distance=float(away[mask].mean()) if count else math.nan,
        pixel_error=math.sqrt(float(errors[mask].mean())) if count else math.nan,
        explained=1 - float(errors[mask].sum()) / whole if whole > 0 else math.nan,
    )
