"""Local probes: position and pixels of a patch predicted from its token, for normal and outlier tokens.

The probes of "Vision Transformers Need Registers" (Darcet et al., 2024), where outlier tokens lose local information.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mambar.analysis.measure.activations import capture_activations
from mambar.analysis.measure.norms import l2_norms
from mambar.analysis.measure.outliers import MedianDeviation, OutlierRule
from mambar.analysis.measure.probes import wilson_interval
from mambar.analysis.measure.ridge import Ridge, fit_ridge
from mambar.data.keys import key, permutation
from mambar.errors import InputError
from mambar.models.protocol import Images, TokenModel, TokenTensor
from mambar.nn import Tokens

# A small penalty is enough for many tokens, and each strength needs a product of all tokens with all positions.
_STRENGTHS = (1e-6, 1e-4, 1e-2)
# Images whose pixels are predicted at once, which bounds memory.
_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class LocalProbe:
    """One group of held-out tokens.

    Attributes:
        group: `normal`, `outlier` or `all`.
        num_tokens: Number of tokens.
        position_accuracy: Share (0-1) of tokens whose grid position is predicted exactly.
        position_low, position_high: 95 % interval of `position_accuracy`.
        position_distance: Mean distance of the predicted position, in patches.
        pixel_error: Root mean squared error of the patch's pixels, in the units of the images.
        explained: 1 - squared error / squared error of the mean patch.
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
    """The probes of one layer for each group; `chance` is the position accuracy of a random prediction."""

    rule: str
    layer: int
    tensor: TokenTensor
    chance: float
    num_images: int
    groups: tuple[LocalProbe, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalTokens:
    """Tokens with the pixels of their patches and the norms that rank them."""

    tokens: Float[Tensor, "images patches dim"]
    pixels: Float[Tensor, "images patches values"]
    norms: Float[Tensor, "images patches"]
    grid: tuple[int, int]


def patch_pixels(images: Images, patch_size: int) -> Float[Tensor, "batch patches values"]:
    """The pixels of each patch in row order; incomplete patches at the border are omitted."""
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
) -> LocalTokens:
    """All image tokens of the batches with their patches; memory grows with the images, so pass a few hundred."""
    parts = []
    for images in batches:
        found = capture_activations(model, images, {tensor: [layer], ranking: [layer]})
        parts.append(local_batch(images, found[tensor][0], found[ranking][0], model.patch_size))
    return join_local(parts)


def local_batch(images: Images, tokens: Tokens, ranked: Tokens, patch_size: int) -> LocalTokens:
    """The first tokens of a batch with the patches of `images`; `ranked` holds those whose norms find the outliers."""
    count = len(images)
    return LocalTokens(
        tokens=tokens.patches[:count].float().cpu(),
        pixels=patch_pixels(images.cpu().float(), patch_size),
        norms=l2_norms(ranked.patches[:count]).cpu(),
        grid=tokens.grid,
    )


def join_local(parts: Sequence[LocalTokens]) -> LocalTokens:
    """The tokens of all batches; raises `InputError` if there are none."""
    if not parts:
        raise InputError("There are no images to probe; the batches are empty.")
    tokens, pixels, norms = zip(*((part.tokens, part.pixels, part.norms) for part in parts), strict=True)
    return LocalTokens(tokens=torch.cat(tokens), pixels=torch.cat(pixels), norms=torch.cat(norms), grid=parts[0].grid)


def local_probes(
    local: LocalTokens,
    *,
    rule: OutlierRule | None = None,
    seed: int = 0,
    layer: int = -1,
    tensor: TokenTensor = "normed",
) -> LocalProbes:
    """Linear probes of position and pixels, fitted on the tokens of half of the images and tested on the other half.

    One ridge regression is fitted on all tokens; the groups differ only in the held-out tokens that are counted.
    `layer` and `tensor` are recorded in the result.
    """
    rule = rule or MedianDeviation()
    count, num_patches = local.tokens.shape[:2]
    if count < 2:
        raise InputError(
            f"Local probes got {count} image; they need at least 2 images, one half to fit and one half to test."
        )
    order = torch.from_numpy(permutation(count, key(seed, "local-probe")))
    fit, held = order[: count // 2], order[count // 2 :]
    outliers = local.norms > rule.threshold(local.norms.flatten())

    positions = torch.eye(num_patches, dtype=torch.float64)
    position = fit_ridge(local.tokens[fit].flatten(0, 1), positions.repeat(len(fit), 1), strengths=_STRENGTHS)
    predicted = position.predict(local.tokens[held].flatten(0, 1)).argmax(1).reshape(len(held), num_patches)
    pixel = fit_ridge(local.tokens[fit].flatten(0, 1), local.pixels[fit].flatten(0, 1), strengths=_STRENGTHS)

    correct = predicted == torch.arange(num_patches)
    distance = _grid_distance(predicted, local.grid)
    by_part = [_pixel_errors(pixel, local, part) for part in held.split(_IMAGES)]
    errors, spread = (torch.cat(parts) for parts in zip(*by_part, strict=True))
    groups = {"normal": ~outliers[held], "outlier": outliers[held], "all": torch.ones_like(outliers[held])}

    def group(name: str, mask: Bool[Tensor, "images patches"]) -> LocalProbe:
        count, num_correct = int(mask.sum()), int(correct[mask].sum())
        low, high = wilson_interval(num_correct, count)
        total = float(spread[mask].sum())
        return LocalProbe(
            group=name,
            num_tokens=count,
            position_accuracy=num_correct / count if count else math.nan,
            position_low=low,
            position_high=high,
            position_distance=float(distance[mask].mean()) if count else math.nan,
            pixel_error=math.sqrt(float(errors[mask].mean())) if count else math.nan,
            explained=1 - float(errors[mask].sum()) / total if total > 0 else math.nan,
        )

    return LocalProbes(
        rule=rule.name,
        layer=layer,
        tensor=tensor,
        chance=1 / num_patches,
        num_images=count,
        groups=tuple(group(name, mask) for name, mask in groups.items()),
    )


def _pixel_errors(
    pixel: Ridge, local: LocalTokens, images: Int64[Tensor, "images"]
) -> tuple[Float[Tensor, "images patches"], Float[Tensor, "images patches"]]:
    """Mean squared errors of the predicted patches, and of the mean patch."""
    target = local.pixels[images].double()
    predicted = pixel.predict(local.tokens[images].flatten(0, 1)).reshape(target.shape)
    return (predicted - target).square().mean(-1), (target - pixel.offset).square().mean(-1)


def _grid_distance(predicted: Tensor, grid: tuple[int, int]) -> Float[Tensor, "images patches"]:
    cols = grid[1]
    own = torch.arange(grid[0] * cols)
    down, right = predicted // cols - own // cols, predicted % cols - own % cols
    return (down.double().square() + right.double().square()).sqrt()
