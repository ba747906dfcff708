"""Pooling probes: how much of the class a linear map can read from the mean of chosen tokens.

The paper pools the 5, 10 or 20 % highest-norm tokens of Vim-B, or the 80 % lowest, and reports top-1 accuracy; how it
classified the pooled vector is not said (arXiv 2405.14858). Here: linear probes on frozen features, cross-validated.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mambar.analysis.measure.collect import Progress, model_device
from mambar.analysis.measure.norms import eval_mode, l2_norms, layer_indices
from mambar.analysis.measure.ridge import fit_ridge
from mambar.data.keys import key, permutation
from mambar.data.loading.to_device import to_device
from mambar.errors import InputError
from mambar.models.protocol import TokenModel, TokenTensor
from mambar.nn import Tokens

Pool = Callable[[Tokens, Tensor], Tensor]


def highest_norm(share: float) -> Pool:
    """Pools the mean of the `share` (0-1) highest-norm image tokens of each image, rounded, at least one."""
    return lambda tokens, norms: _mean_of(tokens, norms, share, largest=True)


def lowest_norm(share: float) -> Pool:
    """Pools the mean of the `share` (0-1) lowest-norm image tokens of each image, rounded, at least one."""
    return lambda tokens, norms: _mean_of(tokens, norms, share, largest=False)


def _mean_of(tokens: Tokens, norms: Tensor, share: float, *, largest: bool) -> Tensor:
    count = max(1, round(share * norms.shape[1]))
    chosen = torch.topk(norms, count, dim=1, largest=largest).indices
    return tokens.patches.gather(1, chosen[..., None].expand(-1, -1, tokens.patches.shape[2])).mean(1)


# Tokens and their norms (batch, patches) in, one vector an image out.
POOLS: Final[dict[str, Pool]] = {
    "all image tokens": lambda tokens, norms: tokens.patches.mean(1),
    "highest-norm 5 %": highest_norm(0.05),
    "highest-norm 10 %": highest_norm(0.10),
    "highest-norm 20 %": highest_norm(0.20),
    "lowest-norm 80 %": lowest_norm(0.80),
    "lowest-norm 5 %": lowest_norm(0.05),
    "registers, mean": lambda tokens, norms: tokens.registers.mean(1),
    "registers, joined": lambda tokens, norms: tokens.registers.flatten(1),
    "first register": lambda tokens, norms: tokens.registers[:, 0],
}


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledFeatures:
    """One vector an image for each way of pooling, and the labels."""

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
    progress: Progress | None = None,
) -> PooledFeatures:
    """Frozen features of labeled images, pooled in every way of `pools` (default: `POOLS`).

    Tokens are ranked by their norm in the `ranking` tensor and their `features` averaged. A pool that needs
    registers is left out where the model has none; with one register "mean" and "joined" are left out, as they equal
    the first.
    """
    indices = layer_indices(model, [layer])
    device = model_device(model)
    found: dict[str, list[Tensor]] = {}
    labels = []
    with eval_mode(model):
        for images, targets in batches:
            images = to_device(images, device)
            ranked = model.tokens(images, indices, tensor=ranking)[0]
            tokens = ranked if features == ranking else model.tokens(images, indices, tensor=features)[0]
            norms = l2_norms(ranked.patches)
            for name, pool in (pools or _fitting(tokens)).items():
                found.setdefault(name, []).append(pool(tokens, norms).float().cpu())
            labels.append(targets.cpu())
            if progress is not None:
                progress(sum(len(part) for part in labels))
    if not labels:
        raise InputError("There are no labeled images to probe; the batches are empty.")
    return PooledFeatures(features={name: torch.cat(parts) for name, parts in found.items()}, labels=torch.cat(labels))


def _fitting(tokens: Tokens) -> dict[str, Pool]:
    count = tokens.registers.shape[1]
    left_out = {
        0: ("registers, mean", "registers, joined", "first register"),
        1: ("registers, mean", "registers, joined"),
    }
    return {name: pool for name, pool in POOLS.items() if name not in left_out.get(count, ())}


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeResult:
    """Cross-validated top-1 accuracy (0-1) of one linear probe.

    low, high: 95 % interval (Wilson), which takes the images as independent. folds: accuracy of each fold.
    correct: whether each image was right when it was held out.
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
        """The result as a JSON object, without the single images."""
        return {name: value for name, value in asdict(self).items() if name != "correct"}


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson interval of a share, 95 % for the default `z`."""
    if not total:
        return 0.0, 1.0
    share, spread = right / total, z * z / total
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def difference(first: ProbeResult, second: ProbeResult, z: float = 1.959964) -> tuple[float, float, float]:
    """Accuracy of `first` minus that of `second` on the same images, with its paired 95 % interval (low, high)."""
    count = len(first.correct)
    if count != len(second.correct):
        raise InputError(f"The probes saw {count} and {len(second.correct)} images; compare probes of the same ones.")
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((~first.correct & second.correct).sum())
    value = (only_first - only_second) / count
    spread = math.sqrt(max(only_first + only_second - (only_first - only_second) ** 2 / count, 0.0)) / count
    return value, value - z * spread, value + z * spread


def fold_numbers(labels: Int64[Tensor, "images"], folds: int, seed: int) -> Int64[Tensor, "images"]:
    """The fold of each image: every class spread evenly over the folds, drawn by `seed`."""
    if not 2 <= folds <= len(labels):
        raise InputError(f"folds={folds} must lie between 2 and the {len(labels)} images.")
    numbers = torch.empty_like(labels)
    start = 0
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.from_numpy(permutation(len(members), key(seed, "fold", int(label))))
        # Going on where the class before stopped keeps the folds of equal size when classes are small.
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
    """A cross-validated linear probe; the penalty is chosen inside each training part, never on the held-out fold.

    method: `ridge` (closed form on one-hot targets, penalty by leave-one-out accuracy) or `logistic`.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r} is not known; choose one of {', '.join(METHODS)}.")
    if not torch.isfinite(features).all():
        raise InputError(f"The features of {name!r} hold NaN or Inf; a linear probe needs finite numbers.")
    numbers = fold_numbers(labels, folds, seed)
    correct = torch.zeros(len(labels), dtype=torch.bool)
    accuracies, strengths = [], []
    for fold in range(folds):
        held = numbers == fold
        predicted, strength = METHODS[method](features[~held], labels[~held], features[held], seed)
        correct[held] = predicted == labels[held]
        accuracies.append(float(correct[held].double().mean()))
        strengths.append(strength)
    right = int(correct.sum())
    low, high = wilson_interval(right, len(labels))
    return ProbeResult(
        name=name,
        method=method,
        accuracy=right / len(labels),
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
    """A probe for every pool and method."""
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
    """Multinomial logistic regression; the penalty is the one that does best on a third of the given images."""
    held = fold_numbers(labels, min(3, len(labels)), seed).numpy() == 0
    x, y = features.double().numpy(), labels.numpy()

    def right(strength: float) -> int:
        return int((_logistic_labels(x[~held], y[~held], x[held], strength) == y[held]).sum())

    best = max(LOGISTIC_STRENGTHS, key=lambda strength: (right(strength), strength))
    return torch.from_numpy(_logistic_labels(x, y, others.double().numpy(), best)), best


# The penalty relative to the number of samples, as for ridge.
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
    # scikit-learn weighs the sum of losses by C against half the squared norm of the weights.
    model = LogisticRegression(C=1 / (strength * len(labels)), max_iter=1000, tol=1e-3)
    model.fit((features - mean) / scale, labels)
    return np.asarray(model.predict((others - mean) / scale))


METHODS: Final = {"ridge": _ridge, "logistic": _logistic}
