"""Ridge regression in closed form; the penalty is chosen by leave-one-out errors, which need no refitting."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Penalties in units of the number of samples, for features of unit variance.
STRENGTHS = tuple(10.0**power for power in range(-5, 3))

# Target columns processed at once. scikit-learn's RidgeCV holds all leave-one-out predictions, which takes too much
# memory for the position probe.
_COLUMNS = 64

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ridge:
    """A fitted ridge regression: targets = (features - mean) / scale @ weight + offset."""

    mean: Float[Tensor, "dim"]
    scale: Float[Tensor, "dim"]
    weight: Float[Tensor, "dim targets"]
    offset: Float[Tensor, "targets"]
    strength: float

    def predict(self, features: Float[Tensor, "samples dim"]) -> Float[Tensor, "samples targets"]:
        """The targets of other samples, float64."""
        return (features.double() - self.mean) / self.scale @ self.weight + self.offset


def fit_ridge(
    features: Float[Tensor, "samples dim"],
    targets: Float[Tensor, "samples targets"],
    *,
    strengths: tuple[float, ...] = STRENGTHS,
    score: Score | None = None,
) -> Ridge:
    """Ridge regression on standardized features, the penalty not on the offset, all in float64.

    The strength (in units of the number of samples) is the one with the largest `score` of the leave-one-out
    predictions (samples, targets); the default score is minus their squared error. Of equal scores the largest
    strength is chosen.
    """
    features = features.double()
    count = len(features)
    mean = features.mean(0)
    offset = torch.cat([block.double().mean(0) for block in targets.split(_COLUMNS, 1)])
    scale = features.std(0, correction=0)
    # A constant feature must not be divided by its rounding error.
    scale = torch.where(scale > 1e-12 * features.abs().amax(0).clamp_min(1e-300), scale, torch.inf)
    standard = (features - mean) / scale
    left, squares, right = _decompose(standard)
    projected = torch.cat([left.T @ (block - block_offset) for block, block_offset in _blocks(targets, offset)], 1)

    def residuals(strength: float) -> Iterator[Float[Tensor, "samples columns"]]:
        """Leave-one-out predictions minus targets: leaving out a sample divides its residual by 1 - leverage."""
        shrink = squares / (squares + strength * count)
        leverage = (left.square() @ shrink + 1 / count).clamp_max(1 - 1e-9)[:, None]
        for (block, block_offset), part in zip(_blocks(targets, offset), projected.split(_COLUMNS, 1), strict=True):
            yield (left @ (shrink[:, None] * part) + block_offset - block) / (1 - leverage)

    best: tuple[float, float] | None = None
    for strength in strengths:
        if score:
            value = float(score(torch.cat(list(residuals(strength)), 1) + targets))
        else:
            value = -sum(float(part.square().sum()) for part in residuals(strength))
        if best is None or value >= best[0]:
            best = (value, strength)
    chosen = best[1] if best else strengths[0]
    weight = right @ (squares.sqrt() / (squares + chosen * count))[:, None].mul(projected)
    return Ridge(mean=mean, scale=scale, weight=weight, offset=offset, strength=chosen)


def _blocks(targets: Tensor, offset: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Targets in float64 with their offsets, a few columns at a time to limit memory."""
    for block, block_offset in zip(targets.split(_COLUMNS, 1), offset.split(_COLUMNS), strict=True):
        yield block.double(), block_offset


def _decompose(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors (samples, rank), squared singular values (rank), right vectors (dim, rank)."""
    samples, dim = matrix.shape
    if samples < dim:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        squares, right = values.square(), right.T
    else:
        # Many samples: the small matrix of products is cheaper, and its rounding errors are far below any penalty.
        squares, right = torch.linalg.eigh(matrix.T @ matrix)
        left = matrix @ right / squares.clamp_min(1e-300).sqrt()
    nonzero = squares > 1e-12 * squares.max().clamp_min(1e-300)
    return left[:, nonzero], squares[nonzero], right[:, nonzero]
