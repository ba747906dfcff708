"""Norms and maps against ground truth: masks give background and objects, pixels give local entropy."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from mambar.analysis.measure.outliers import MedianDeviation, OutlierRule, outlier_mask
from mambar.errors import InputError


def background_share(
    masks: Shaped[Tensor, "batch height width"], patch_size: int, *, background: int = 0, ignore: int | None = None
) -> Float[Tensor, "batch rows cols"]:
    """The share (0-1) of background pixels of each patch; NaN if all pixels of the patch have the value `ignore`."""
    plain = (masks == background).double()
    counted = torch.ones_like(plain) if ignore is None else (masks != ignore).double()
    shares = (_patch_mean(plain * counted, patch_size), _patch_mean(counted, patch_size))
    return torch.where(shares[1] > 0, shares[0] / shares[1].clamp_min(1e-12), math.nan)


def local_entropy(
    images: UInt8[Tensor, "batch channels height width"], patch_size: int, *, bins: int = 32
) -> Float[Tensor, "batch rows cols"]:
    """The entropy in bits of each patch's gray values (0-255 in `bins` equal bins): low in uniform background."""
    gray = images.double().mean(1)
    level = (gray * bins / 256).floor().clamp(0, bins - 1)
    total = torch.zeros_like(_patch_mean(gray, patch_size))
    for value in range(bins):
        share = _patch_mean((level == value).double(), patch_size)
        total -= torch.special.xlogy(share, share) / math.log(2)
    return total.clamp_min(0)


def _patch_mean(values: Float[Tensor, "batch height width"], size: int) -> Float[Tensor, "batch rows cols"]:
    return torch.nn.functional.avg_pool2d(values[:, None], size)[:, 0]


# Both rank statistics are computed for every image, layer and rule: some 10^5 times in a report. `roc_auc_score` takes
# 40 times and `spearmanr` 3 times as long on one image; both equal these results.
def roc_auc(scores: Float[Tensor, "values"], positive: Bool[Tensor, "values"]) -> float:
    """The area under the ROC curve (0-1), from the rank sum of the positives; NaN if there is one class only."""
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return math.nan
    total = float(_ranks(scores)[positive.numpy()].sum())
    return (total - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def spearman(first: Float[Tensor, "values"], second: Float[Tensor, "values"]) -> float:
    """The rank correlation (-1 to 1); NaN if one of them is constant."""
    left, right = (ranks - ranks.mean() for ranks in map(_ranks, (first, second)))
    scale = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / scale if scale > 0 else math.nan


def _ranks(values: Float[Tensor, "values"]) -> Float[np.ndarray, "values"]:
    from scipy.stats import rankdata

    return rankdata(values.numpy())


def iou(predicted: Bool[Tensor, "*shape"], target: Bool[Tensor, "*shape"]) -> float:
    """Intersection over union; NaN if both are empty."""
    union = int((predicted | target).sum())
    return int((predicted & target).sum()) / union if union else math.nan


def best_iou(scores: Float[Tensor, "rows cols"], target: Bool[Tensor, "rows cols"]) -> float:
    """The largest IoU that any threshold on `scores` (large: object) reaches; chosen with the masks."""
    if not target.any():
        return math.nan
    values, order = scores.flatten().sort(descending=True, stable=True)
    true_positives = target.flatten()[order].double().cumsum(0)
    positives = torch.arange(1, len(values) + 1, dtype=torch.float64, device=scores.device)
    # A threshold cannot separate equal scores: only the last of equal scores counts.
    last = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool, device=scores.device)])
    return float((true_positives / (positives + int(target.sum()) - true_positives))[last].max())


def otsu_threshold(scores: Float[Tensor, "*shape"]) -> float:
    """Otsu's threshold on the exact values, halfway between the two classes; it does not use the masks."""
    from skimage.filters import threshold_otsu

    values, counts = np.unique(scores.double().numpy(), return_counts=True)
    if len(values) == 1:
        return float(values[0])
    highest_below = int(np.searchsorted(values, threshold_otsu(hist=(counts, values))))
    return float(values[highest_below : highest_below + 2].mean())


@dataclass(frozen=True, kw_only=True)
class MapGroundTruth:
    """IoU of a map with the object masks, means over the images that have objects and background.

    Attributes:
        name: Name of the map.
        otsu_iou: IoU at Otsu's threshold.
        best_iou: IoU at the best threshold of each image, chosen with the masks.
        everything_iou: IoU if every token is called an object: the lower bound of `best_iou`.
        num_images: Number of images.
    """

    name: str
    otsu_iou: float
    best_iou: float
    everything_iou: float
    num_images: int


def map_ground_truth(
    name: str, scores: Float[Tensor, "batch rows cols"], background: Float[Tensor, "batch rows cols"]
) -> MapGroundTruth:
    """`scores` (large: object; pass the negative of a distance) against patches with less than half background."""
    rows = []
    for image, plain in zip(scores.cpu().double(), background, strict=True):
        target = plain < 0.5
        if target.any() and not target.all():
            everything = float(target.double().mean())
            rows.append((iou(image > otsu_threshold(image), target), best_iou(image, target), everything))
    otsu, best, everything = (_interval([row[place] for row in rows])[0] for place in range(3))
    return MapGroundTruth(name=name, otsu_iou=otsu, best_iou=best, everything_iou=everything, num_images=len(rows))


@dataclass(frozen=True, kw_only=True)
class LayerGroundTruth:
    """One layer's norms against ground truth.

    Attributes:
        layer: Number of the layer.
        outliers: Number of outliers.
        background: Share (0-1) of background among the pixels of all tokens.
        outlier_background: Share (0-1) of background among the pixels of outliers; the rest is in objects.
        outlier_background_low, outlier_background_high: 95 % interval of `outlier_background` over images.
        lift: `outlier_background` / `background`.
        auc: ROC-AUC of the norm as a detector of background patches, mean over images.
        auc_low, auc_high: 95 % interval of `auc` over images.
        entropy_correlation: Rank correlation of norm and local entropy, mean over images; negative if
            high-norm tokens are on uniform patches.
        entropy_low, entropy_high: 95 % interval of `entropy_correlation` over images.
    """

    layer: int
    outliers: int
    background: float
    outlier_background: float
    lift: float
    auc: float
    auc_low: float
    auc_high: float
    entropy_correlation: float
    entropy_low: float
    entropy_high: float
    outlier_background_low: float
    outlier_background_high: float


@dataclass(frozen=True, kw_only=True)
class GroundTruthStatistics:
    """Norms against ground truth, layer by layer, for one rule of outliers; objects are "masks" or "boxes"."""

    rule: str
    num_images: int
    layers: tuple[LayerGroundTruth, ...]
    objects: str = "masks"


def ground_truth_statistics(
    norms: Float[Tensor, "layers batch rows cols"],
    *,
    background: Float[Tensor, "batch rows cols"],
    entropy: Float[Tensor, "batch rows cols"] | None = None,
    rule: OutlierRule | None = None,
    layers: Sequence[int] | None = None,
    objects: str = "masks",
) -> GroundTruthStatistics:
    """Position of the outliers against the masks, or boxes as masks, for each layer.

    `rule` is `MedianDeviation` by default. For the other arguments see `ground_truth_by_rule`.
    """
    (found,) = ground_truth_by_rule(
        norms,
        rules=[rule or MedianDeviation()],
        background=background,
        entropy=entropy,
        layers=layers,
        objects=objects,
    )
    return found


def ground_truth_by_rule(
    norms: Float[Tensor, "layers batch rows cols"],
    *,
    rules: Sequence[OutlierRule],
    background: Float[Tensor, "batch rows cols"],
    entropy: Float[Tensor, "batch rows cols"] | None = None,
    layers: Sequence[int] | None = None,
    objects: str = "masks",
) -> list[GroundTruthStatistics]:
    """The statistics of `ground_truth_statistics` for several rules; ranks, which all rules share, are computed once.

    `background` comes from `background_share`, `entropy` from `local_entropy`; NaN is skipped. `layers` are the numbers
    of the layers (default: from 0).
    """
    if norms.shape[1:] != background.shape:
        raise InputError(
            f"norms of {tuple(norms.shape[1:])} tokens do not match background of {tuple(background.shape)}; "
            "use the model's patch size and masks of the images' size."
        )
    masks = [outlier_mask(norms, rule).cpu() for rule in rules]
    rows: list[list[LayerGroundTruth]] = [[] for _ in rules]
    for place, number in enumerate(range(len(norms)) if layers is None else layers):
        ranks = _rank_statistics(norms[place].cpu().double(), background, entropy)
        for mask, of_rule in zip(masks, rows, strict=True):
            of_rule.append(_layer_ground_truth(number, mask[place], background, ranks))
    return [
        GroundTruthStatistics(rule=rule.name, num_images=norms.shape[1], layers=tuple(of_rule), objects=objects)
        for rule, of_rule in zip(rules, rows, strict=True)
    ]


def _layer_ground_truth(
    number: int,
    outliers: Bool[Tensor, "batch rows cols"],
    background: Float[Tensor, "batch rows cols"],
    ranks: Mapping[str, float],
) -> LayerGroundTruth:
    known = torch.isfinite(background)
    everywhere = float(background[known].mean()) if known.any() else math.nan
    hits = known & outliers
    there, there_low, there_high = _ratio_interval(
        (background.where(hits, 0.0)).sum(dim=(1, 2)), hits.sum(dim=(1, 2)).double()
    )
    return LayerGroundTruth(
        layer=number,
        outliers=int(outliers.sum()),
        background=everywhere,
        outlier_background=there,
        lift=there / everywhere if everywhere else math.nan,
        outlier_background_low=there_low,
        outlier_background_high=there_high,
        **ranks,
    )


def _rank_statistics(
    norms: Float[Tensor, "batch rows cols"],
    background: Float[Tensor, "batch rows cols"],
    entropy: Float[Tensor, "batch rows cols"] | None,
) -> dict[str, float]:
    """The fields of `LayerGroundTruth` that depend on no outliers: AUC and correlation, with their intervals."""
    seen = torch.isfinite(background) & torch.isfinite(norms)
    aucs = [roc_auc(image[good], plain[good] > 0.5) for image, plain, good in zip(norms, background, seen, strict=True)]
    correlations = []
    if entropy is not None:
        finite = torch.isfinite(norms)
        correlations = [
            spearman(image[good], bits[good]) for image, bits, good in zip(norms, entropy, finite, strict=True)
        ]
    auc, auc_low, auc_high = _interval(aucs)
    middle, low, high = _interval(correlations)
    return {
        "auc": auc,
        "auc_low": auc_low,
        "auc_high": auc_high,
        "entropy_correlation": middle,
        "entropy_low": low,
        "entropy_high": high,
    }


def _ratio_interval(
    parts: Float[Tensor, "images"], totals: Float[Tensor, "images"], z: float = 1.959964
) -> tuple[float, float, float]:
    """sum(parts) / sum(totals) with its 95 % interval over images, by the linearized variance of a ratio."""
    total, count = float(totals.sum()), len(totals)
    if not total:
        return math.nan, math.nan, math.nan
    ratio = float(parts.sum()) / total
    if count < 2:
        return ratio, math.nan, math.nan
    half = z * math.sqrt(float(((parts - ratio * totals) ** 2).sum()) * count / (count - 1)) / total
    return ratio, max(ratio - half, 0.0), min(ratio + half, 1.0)


def _interval(values: Sequence[float], z: float = 1.959964) -> tuple[float, float, float]:
    """Mean and 95 % interval of the finite values, by the normal approximation."""
    finite = [value for value in values if math.isfinite(value)]
    middle = statistics.fmean(finite) if finite else math.nan
    half = z * statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
    return middle, middle - half, middle + half
