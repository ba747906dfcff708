"""Norms and maps against ground truth: masks say what is background, pixels say how much there is to see."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from mambar.analysis.measure.outliers import MedianDeviation, OutlierRule, outlier_mask
from mambar.errors import InputError


def background_share(
    masks: Shaped[Tensor, "batch height width"],
    patch_size: int,
    *,
    background: int = 0,
    ignore: int | None = None,
) -> Float[Tensor, "batch rows cols"]:
    """The share (0-1) of each patch's pixels that is background; NaN where all its pixels have the value `ignore`."""
    plain = (masks == background).double()
    counted = torch.ones_like(plain) if ignore is None else (masks != ignore).double()
    shares = (_patch_mean(plain * counted, patch_size), _patch_mean(counted, patch_size))
    return torch.where(shares[1] > 0, shares[0] / shares[1].clamp_min(1e-12), math.nan)


def local_entropy(
    images: UInt8[Tensor, "batch channels height width"], patch_size: int, *, bins: int = 32
) -> Float[Tensor, "batch rows cols"]:
    """The entropy in bits of each patch's grey values (0-255 in `bins` equal steps): little in plain background."""
    grey = images.double().mean(1)
    level = (grey * bins / 256).floor().clamp(0, bins - 1)
    total = torch.zeros_like(_patch_mean(grey, patch_size))
    for value in range(bins):
        share = _patch_mean((level == value).double(), patch_size)
        total -= torch.special.xlogy(share, share) / math.log(2)
    return total.clamp_min(0)


def _patch_mean(values: Float[Tensor, "batch height width"], size: int) -> Float[Tensor, "batch rows cols"]:
    return torch.nn.functional.avg_pool2d(values[:, None], size)[:, 0]


def ranks(values: Float[Tensor, "values"]) -> Float[Tensor, "values"]:
    """The rank of each value from 1, equal ones sharing the mean of their ranks."""
    _, inverse, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def roc_auc(scores: Float[Tensor, "values"], positive: Bool[Tensor, "values"]) -> float:
    """The chance (0-1) that a positive scores above a negative, equal scores counting half; NaN without both."""
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return math.nan
    total = float(ranks(scores)[positive].sum())
    return (total - hits * (hits + 1) / 2) / (hits * misses)


def spearman(first: Float[Tensor, "values"], second: Float[Tensor, "values"]) -> float:
    """The rank correlation (-1 to 1); NaN where one of them never changes."""
    left, right = ranks(first), ranks(second)
    left, right = left - left.mean(), right - right.mean()
    length = math.sqrt(float(left.square().sum()) * float(right.square().sum()))
    return float((left * right).sum()) / length if length > 0 else math.nan


def iou(found: Bool[Tensor, "*shape"], wanted: Bool[Tensor, "*shape"]) -> float:
    """Intersection over union; NaN where both are empty."""
    union = int((found | wanted).sum())
    return int((found & wanted).sum()) / union if union else math.nan


def best_iou(scores: Float[Tensor, "rows cols"], wanted: Bool[Tensor, "rows cols"]) -> float:
    """The largest IoU that any threshold on `scores` (large: object) reaches; chosen with the masks."""
    if not wanted.any():
        return math.nan
    values, order = scores.flatten().sort(descending=True, stable=True)
    hits = wanted.flatten()[order].double().cumsum(0)
    found = torch.arange(1, len(values) + 1, dtype=torch.float64, device=scores.device)
    # Equal scores cross a threshold together: only the last of a run is a place where it can lie.
    ends = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool, device=scores.device)])
    return float((hits / (found + int(wanted.sum()) - hits))[ends].max())


def otsu_threshold(scores: Float[Tensor, "*shape"]) -> float:
    """The threshold that splits the scores into the two groups of least spread within; it ignores the masks."""
    values = scores.double().flatten().sort().values
    count = len(values)
    sums = values.cumsum(0)
    below = torch.arange(1, count, dtype=torch.float64, device=values.device)
    mean_below = sums[:-1] / below
    mean_above = (sums[-1] - sums[:-1]) / (count - below)
    between = below * (count - below) * (mean_above - mean_below).square()
    split = int(between.argmax()) if count > 1 else 0
    return float((values[split] + values[min(split + 1, count - 1)]) / 2)


@dataclass(frozen=True, kw_only=True)
class MapGroundTruth:
    """How well a map finds the objects, means over the images that have any.

    otsu_iou: IoU at Otsu's threshold; best_iou: at the best threshold of each image, chosen with the masks;
    everything_iou: IoU of calling every token an object, the least that `best_iou` can be.
    """

    name: str
    otsu_iou: float
    best_iou: float
    everything_iou: float
    num_images: int


def map_ground_truth(
    name: str, scores: Float[Tensor, "batch rows cols"], background: Float[Tensor, "batch rows cols"]
) -> MapGroundTruth:
    """`scores` (large: object; give the negative of a distance) against patches that are mostly not background."""
    rows = []
    for image, plain in zip(scores.cpu().double(), background, strict=True):
        wanted = plain < 0.5
        if wanted.any() and not wanted.all():
            everything = float(wanted.double().mean())
            rows.append((iou(image > otsu_threshold(image), wanted), best_iou(image, wanted), everything))
    otsu, best, everything = (_mean([row[place] for row in rows]) for place in range(3))
    return MapGroundTruth(name=name, otsu_iou=otsu, best_iou=best, everything_iou=everything, num_images=len(rows))


@dataclass(frozen=True, kw_only=True)
class LayerGroundTruth:
    """One layer's norms against ground truth.

    background: share of background among all tokens' pixels; outlier_background: among those of outliers; lift: the
    ratio. auc: mean over images of the ROC-AUC of the norm as a detector of background patches, with its 95 %
    interval over images. entropy_correlation: mean over images of the rank correlation between norm and local
    entropy, with its interval: negative where long tokens lie on plain patches.
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


@dataclass(frozen=True, kw_only=True)
class GroundTruthStatistics:
    """Norms against ground truth, layer by layer, for one rule of outliers."""

    rule: str
    num_images: int
    layers: tuple[LayerGroundTruth, ...]

    def to_dict(self) -> dict[str, object]:
        """The statistics as a JSON object."""
        return asdict(self)


def ground_truth_statistics(
    norms: Float[Tensor, "layers batch rows cols"],
    *,
    background: Float[Tensor, "batch rows cols"],
    entropy: Float[Tensor, "batch rows cols"] | None = None,
    rule: OutlierRule | None = None,
    layers: Sequence[int] | None = None,
) -> GroundTruthStatistics:
    """Where the outliers lie. `background` from `background_share`, `entropy` from `local_entropy`; NaN is skipped.

    `layers` are the numbers that the layers go by (default: from 0).
    """
    if norms.shape[1:] != background.shape:
        raise InputError(
            f"norms of {tuple(norms.shape[1:])} tokens do not fit background of {tuple(background.shape)}; "
            "make it with the model's patch size from masks of the images' size."
        )
    rule = rule or MedianDeviation()
    mask = outlier_mask(norms, rule).cpu()
    numbers = range(len(norms)) if layers is None else layers
    rows = tuple(
        _layer_ground_truth(number, norms[place].cpu().double(), mask[place], background, entropy)
        for place, number in enumerate(numbers)
    )
    return GroundTruthStatistics(rule=rule.name, num_images=norms.shape[1], layers=rows)


def _layer_ground_truth(
    number: int,
    norms: Float[Tensor, "batch rows cols"],
    outliers: Bool[Tensor, "batch rows cols"],
    background: Float[Tensor, "batch rows cols"],
    entropy: Float[Tensor, "batch rows cols"] | None,
) -> LayerGroundTruth:
    known = torch.isfinite(background)
    everywhere = float(background[known].mean()) if known.any() else math.nan
    hit = background[known & outliers]
    there = float(hit.mean()) if hit.numel() else math.nan
    seen = known & torch.isfinite(norms)
    aucs = [roc_auc(image[good], plain[good] > 0.5) for image, plain, good in zip(norms, background, seen, strict=True)]
    correlations = []
    if entropy is not None:
        finite = torch.isfinite(norms)
        correlations = [
            spearman(image[good], bits[good]) for image, bits, good in zip(norms, entropy, finite, strict=True)
        ]
    auc, auc_low, auc_high = _interval(aucs)
    middle, low, high = _interval(correlations)
    return LayerGroundTruth(
        layer=number,
        outliers=int(outliers.sum()),
        background=everywhere,
        outlier_background=there,
        lift=there / everywhere if everywhere else math.nan,
        auc=auc,
        auc_low=auc_low,
        auc_high=auc_high,
        entropy_correlation=middle,
        entropy_low=low,
        entropy_high=high,
    )


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _interval(values: Sequence[float], z: float = 1.959964) -> tuple[float, float, float]:
    """Mean and 95 % interval of the finite values, by the normal approximation."""
    finite = [value for value in values if math.isfinite(value)]
    middle = _mean(finite)
    if len(finite) < 2:
        return middle, math.nan, math.nan
    variance = sum((value - middle) ** 2 for value in finite) / (len(finite) - 1)
    half = z * math.sqrt(variance / len(finite))
    return middle, middle - half, middle + half
