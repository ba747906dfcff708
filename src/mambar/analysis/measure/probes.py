"""Pooling probes: accuracy of linear classifiers on the mean of selected tokens.

The paper pools the 5, 10 or 20 % highest-norm tokens of Vim-B, or the 80 % lowest, and reports top-1 accuracy. It
does not state the classifier (arXiv 2405.14858). Here: linear probes on frozen features, cross-validated.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mambar.analysis.measure.activations import capture_activations
from mambar.analysis.measure.norms import l2_norms
from mambar.analysis.measure.ridge import fit_ridge
from mambar.data.keys import key, permutation
from mambar.errors import InputError
from mambar.models.protocol import TokenModel, TokenTensor
from mambar.nn import Tokens

Pool = Callable[[Tokens, Tensor], Tensor]


def norm_pool(share: float, *, highest: bool = True) -> Pool:
    """A pool: the mean of the `share` (0-1) image tokens of highest or lowest norm; rounded, at least one token."""

    def pool(tokens: Tokens, norms: Tensor) -> Tensor:
        count = max(1, round(share * norms.shape[1]))
        chosen = torch.topk(norms, count, dim=1, largest=highest).indices
        return tokens.patches.gather(1, chosen[..., None].expand(-1, -1, tokens.patches.shape[2])).mean(1)

    return pool


# A pool maps tokens and their norms (batch, patches) to one vector per image.
POOLS: Final[dict[str, Pool]] = {
    "all image tokens": lambda tokens, norms: tokens.patches.mean(1),
    "highest-norm 5 %": norm_pool(0.05),
    "highest-norm 10 %": norm_pool(0.10),
    "highest-norm 20 %": norm_pool(0.20),
    "lowest-norm 80 %": norm_pool(0.80, highest=False),
    "lowest-norm 5 %": norm_pool(0.05, highest=False),
    "registers, mean": lambda tokens, norms: tokens.registers.mean(1),
    "registers, concatenated": lambda tokens, norms: tokens.registers.flatten(1),
    "first register": lambda tokens, norms: tokens.registers[:, 0],
}


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledFeatures:
    """One vector per image for each pool, and the labels."""

    features: dict[str, Float[Tensor, "images _"]]
    labels: Int64[Tensor, "images"]


def pool_features(
    model: TokenModel,
    batches: Iterable[tuple[Float[Tensor, "_ channels height width"], Int64[Tensor, "_"]]],
    *,
    layer: int = -1,
    features: TokenTensor = "normed",
    ranking: TokenTensor = "residual",
    pools: dict[str, Pool] | None = None,
) -> PooledFeatures:
    """Features of labeled images, pooled by every pool of `pools` (default: the `POOLS` that the model supports).

    Tokens are ranked by their norm in the `ranking` tensor and their `features` are averaged. Pools of registers are
    omitted without registers; with one register "mean" and "concatenated" are omitted, as they equal "first".
    """
    parts = []
    for images, labels in batches:
        found = capture_activations(model, images, {features: [layer], ranking: [layer]})
        parts.append(pool_batch(found[features][0], found[ranking][0], labels, pools))
    return join_pools(parts)


def pool_batch(
    tokens: Tokens, ranked: Tokens, labels: Int64[Tensor, "batch"], pools: dict[str, Pool] | None = None
) -> PooledFeatures:
    """The pooled tokens of one batch, on the CPU; `ranked` holds the tokens whose norms rank `tokens`."""
    norms = l2_norms(ranked.patches)
    features = {name: pool(tokens, norms).float().cpu() for name, pool in (pools or _supported_pools(tokens)).items()}
    return PooledFeatures(features=features, labels=labels.cpu())


def join_pools(parts: Sequence[PooledFeatures]) -> PooledFeatures:
    """The features of all batches; raises `InputError` if there are none."""
    if not parts:
        raise InputError("There are no labeled images to probe; the batches are empty.")
    features = {name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features}
    return PooledFeatures(features=features, labels=torch.cat([part.labels for part in parts]))


def _supported_pools(tokens: Tokens) -> dict[str, Pool]:
    count = tokens.registers.shape[1]
    left_out = {
        0: ("registers, mean", "registers, concatenated", "first register"),
        1: ("registers, mean", "registers, concatenated"),
    }
    return {name: pool for name, pool in POOLS.items() if name not in left_out.get(count, ())}


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeResult:
    """Cross-validated top-1 accuracy (0-1) of one linear probe.

    Attributes:
        name: Name of the pool.
        method: `ridge` or `logistic`.
        accuracy: Share of correct images, each predicted while held out.
        low, high: 95 % Wilson interval of `accuracy`; it assumes independent images.
        folds: Accuracy of each fold.
        strengths: Penalty chosen in each fold.
        num_images, num_features: Shape of the features.
        correct: Whether each image was predicted correctly while held out.
    """

    name: str
    method: str
    accuracy: float
    low: float
    high: float
    folds: tuple[float, ...]
    strengths: tuple[float, ...]
    num_images: int
    num_features: int
    correct: Bool[Tensor, "images"] = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """The result as a JSON object, without `correct`."""
        return {name: value for name, value in asdict(self).items() if name != "correct"}


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion; 0 to 1 without trials."""
    from scipy.stats import binomtest

    if not total:
        return 0.0, 1.0
    interval = binomtest(successes, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def difference(first: ProbeResult, second: ProbeResult, z: float = 1.959964) -> tuple[float, float, float]:
    """Accuracy of `first` minus that of `second` on the same images, with its paired 95 % interval (low, high)."""
    count = len(first.correct)
    if count != len(second.correct):
        raise InputError(
            f"The probes have {count} and {len(second.correct)} images; compare probes of the same images."
        )
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((~first.correct & second.correct).sum())
    value = (only_first - only_second) / count
    spread = math.sqrt(max(only_first + only_second - (only_first - only_second) ** 2 / count, 0.0)) / count
    return value, value - z * spread, value + z * spread


def fold_numbers(labels: Int64[Tensor, "images"], folds: int, seed: int) -> Int64[Tensor, "images"]:
    """The fold of each image: stratified by class, shuffled by `seed`."""
    if not 2 <= folds <= len(labels):
        raise InputError(f"folds={folds} must be between 2 and the number of images, {len(labels)}.")
    numbers = torch.empty_like(labels)
    start = 0
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.from_numpy(permutation(len(members), key(seed, "fold", int(label))))
        # Starting at the fold where the previous class ended keeps fold sizes equal for small classes.
        numbers[members[order]] = (torch.arange(len(members)) + start) % folds
        start += len(members)
    return numbers


def probe(
    name: str,
    features: Float[Tensor, "images dim"],
    labels: Int64[Tensor, "images"],
    *,
    method: str = "ridge",
    folds: int = 5,
    seed: int = 0,
) -> ProbeResult:
    """A cross-validated linear probe; the penalty is chosen on each training part, never on the held-out fold.

    method: `ridge` (closed form on one-hot targets, penalty by leave-one-out accuracy) or `logistic`.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r} is not known; choose one of {', '.join(METHODS)}.")
    if not torch.isfinite(features).all():
        raise InputError(f"The features of {name!r} contain NaN or Inf; a linear probe needs finite numbers.")
    numbers = fold_numbers(labels, folds, seed)
    correct = torch.zeros(len(labels), dtype=torch.bool)
    accuracies, strengths = [], []
    for fold in range(folds):
        held_out = numbers == fold
        predicted, strength = METHODS[method](features[~held_out], labels[~held_out], features[held_out], seed)
        correct[held_out] = predicted == labels[held_out]
        accuracies.append(float(correct[held_out].double().mean()))
        strengths.append(strength)
    num_correct = int(correct.sum())
    low, high = wilson_interval(num_correct, len(labels))
    return ProbeResult(
        name=name,
        method=method,
        accuracy=num_correct / len(labels),
        low=low,
        high=high,
        folds=tuple(accuracies),
        strengths=tuple(strengths),
        num_images=len(labels),
        num_features=features.shape[1],
        correct=correct,
    )


def probe_all(
    pooled: PooledFeatures, *, methods: Sequence[str] = ("ridge",), folds: int = 5, seed: int = 0
) -> list[ProbeResult]:
    """A probe of every pool with every method."""
    return [
        probe(name, features, pooled.labels, method=method, folds=folds, seed=seed)
        for method in methods
        for name, features in pooled.features.items()
    ]


def _ridge(features: Tensor, labels: Tensor, others: Tensor, seed: int) -> tuple[Tensor, float]:
    classes = labels.unique()
    targets = (labels[:, None] == classes).double()
    fitted = fit_ridge(
        features, targets, score=lambda held_out: (classes[held_out.argmax(1)] == labels).double().mean()
    )
    return classes[fitted.predict(others).argmax(1)], fitted.strength


def _logistic(features: Tensor, labels: Tensor, others: Tensor, seed: int) -> tuple[Tensor, float]:
    """Multinomial logistic regression; the penalty has the best accuracy on a held-out third of the given images."""
    held_out = fold_numbers(labels, min(3, len(labels)), seed).numpy() == 0
    x, y = features.double().numpy(), labels.numpy()

    def num_correct(strength: float) -> int:
        return int((_logistic_labels(x[~held_out], y[~held_out], x[held_out], strength) == y[held_out]).sum())

    best = max(LOGISTIC_STRENGTHS, key=lambda strength: (num_correct(strength), strength))
    return torch.from_numpy(_logistic_labels(x, y, others.double().numpy(), best)), best


# Penalties relative to the number of samples, as for ridge.
LOGISTIC_STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1)


def _logistic_labels(
    features: Float[np.ndarray, "samples dim"],
    labels: Int64[np.ndarray, "samples"],
    others: Float[np.ndarray, "others dim"],
    strength: float,
) -> Int64[np.ndarray, "others"]:
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        return np.full(len(others), labels[0])
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-12, scale, np.inf)
    # scikit-learn minimizes C times the summed losses plus half the squared norm of the weights.
    model = LogisticRegression(C=1 / (strength * len(labels)), max_iter=1000, tol=1e-3)
    model.fit((features - mean) / scale, labels)
    return np.asarray(model.predict((others - mean) / scale))


METHODS: Final = {"ridge": _ridge, "logistic": _logistic}
