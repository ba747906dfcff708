"""Outlier tokens: rules that define them, and statistics of their number, norm, position and stability."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mambar.deprecated import accept_old_names
from mambar.errors import InputError


@runtime_checkable
class OutlierRule(Protocol):
    """The norm above which a token is an outlier."""

    @property
    def name(self) -> str:
        """The rule in words, for tables and figures."""
        ...

    def threshold(self, norms: Float[Tensor, "tokens"]) -> float:
        """The threshold of the norms; infinity if there are no outliers."""
        ...


@dataclass(frozen=True, kw_only=True)
class FixedThreshold:
    """Norms above a number that is the same for every layer and model."""

    value: float

    @property
    def name(self) -> str:
        return f"norm above {self.value:g}"

    def threshold(self, norms: Float[Tensor, "tokens"]) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class MedianDeviation:
    """Norms above median + k · MAD (median absolute deviation, unscaled: 0.67 standard deviations of a normal)."""

    k: float = 10.0

    @property
    def name(self) -> str:
        return f"norm above median + {self.k:g} MAD"

    def threshold(self, norms: Float[Tensor, "tokens"]) -> float:
        finite = _finite(norms)
        if not finite.numel():
            return math.inf
        middle = median(finite)
        return middle + self.k * median((finite - middle).abs())


@dataclass(frozen=True, kw_only=True)
class TopShare:
    """The given share (0-1) of the highest-norm tokens, outliers or not."""

    share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"share={self.share} must be between 0 and 1.")

    @property
    def name(self) -> str:
        return f"highest-norm {self.share * 100:g} %"

    def threshold(self, norms: Float[Tensor, "tokens"]) -> float:
        """Halfway between the last token of the share (rounded, at least one token) and the next lower norm."""
        finite = _finite(norms)
        if not finite.numel():
            return math.inf
        count = max(1, round(self.share * finite.numel()))
        chosen = float(torch.topk(finite, count).values[-1])
        shorter = finite[finite < chosen]
        return (chosen + float(shorter.max())) / 2 if shorter.numel() else chosen * (1 - 1e-6)


@accept_old_names({"least": "min_share"})
@dataclass(frozen=True, kw_only=True)
class Gap:
    """Norms above the gap of a bimodal distribution; none if there is no second mode.

    On a histogram of log2(norm) with `bins_per_octave` bins, smoothed once with (1, 2, 1) / 4: from the highest bin
    upwards, the second mode is the bin that rises most above the lowest point between the two, among those for which
    that point is at most `depth` of the bin. The threshold is the middle of the lowest stretch; it counts when at
    least the share `min_share` (0-1) of the tokens is above it, so that a single token is not a mode.
    """

    bins_per_octave: int = 8
    depth: float = 0.5
    min_share: float = 0.001

    @property
    def name(self) -> str:
        return "beyond the gap of a bimodal distribution"

    def threshold(self, norms: Float[Tensor, "tokens"]) -> float:
        """The norm in the middle of the gap; infinity if the distribution has one mode."""
        positive = _finite(norms)
        positive = positive[positive > 0]
        if not positive.numel():
            return math.inf
        place = torch.log2(positive) * self.bins_per_octave
        lowest = int(place.min().floor())
        index = (place.floor() - lowest).long()
        counts = torch.bincount(index).double()
        padded = torch.nn.functional.pad(counts, (1, 1))
        smooth = (padded[:-2] + 2 * counts + padded[2:]) / 4
        main = int(smooth.argmax())
        valley = torch.cummin(smooth[main:], dim=0).values
        deep = valley <= self.depth * smooth[main:]
        rise = torch.where(deep, smooth[main:] - valley, 0.0)
        second = int(rise.argmax())
        if rise[second] <= 0:
            return math.inf
        stretch = (smooth[main : main + second] == valley[second]).nonzero().flatten()
        middle = main + float(stretch.double().mean()) + 0.5
        limit = 2.0 ** ((lowest + middle) / self.bins_per_octave)
        return limit if int((positive > limit).sum()) >= self.min_share * positive.numel() else math.inf


def default_rules() -> tuple[OutlierRule, ...]:
    """The rules that a report shows: the three that need no number for the model at hand."""
    return MedianDeviation(), Gap(), TopShare()


def thresholds(norms: Float[Tensor, "layers *shape"], rule: OutlierRule) -> list[float]:
    """The rule's threshold for each layer, from all its norms together."""
    return [rule.threshold(layer.flatten()) for layer in norms]


def outlier_mask(
    norms: Float[Tensor, "layers batch rows cols"], rule: OutlierRule
) -> Bool[Tensor, "layers batch rows cols"]:
    """The outliers; each layer has one threshold, from all its tokens. Norms that are not finite are outliers."""
    return _above(norms, thresholds(norms, rule))


def _above(
    norms: Float[Tensor, "layers batch rows cols"], limits: Sequence[float]
) -> Bool[Tensor, "layers batch rows cols"]:
    by_layer = torch.tensor(limits, dtype=torch.float64, device=norms.device)[:, None, None, None]
    return (norms.double() > by_layer) | ~torch.isfinite(norms)


@dataclass(frozen=True, kw_only=True)
class LayerOutliers:
    """The outliers of one layer; undefined values are NaN.

    Attributes:
        layer: Number of the layer.
        threshold: Norm above which a token is an outlier.
        share, share_deviation: Share (0-1) of outliers among all tokens, and its standard deviation over images.
        outlier_mean, rest_mean: Mean norm of outliers and of other tokens.
        maximum, median, ratio: Maximum and median norm, and their ratio.
        recurrence: Probability that an outlier of one image is an outlier at the same position in another image; for
            random positions it equals `share`.
        persistence: Share of outliers that are outliers in the next measured layer too.
    """

    layer: int
    threshold: float
    share: float
    share_deviation: float
    outlier_mean: float
    rest_mean: float
    maximum: float
    median: float
    ratio: float
    recurrence: float
    persistence: float


@dataclass(frozen=True, kw_only=True)
class OutlierStatistics:
    """The outliers that one rule finds, layer by layer."""

    rule: str
    layers: tuple[LayerOutliers, ...]


def outlier_statistics(
    norms: Float[Tensor, "layers batch rows cols"],
    *,
    rule: OutlierRule | None = None,
    layers: Sequence[int] | None = None,
) -> OutlierStatistics:
    """Number, norm and stability over images of the outliers, by layer.

    `norms` are those of `token_norms`, `rule` is `MedianDeviation` by default, and `layers` are the numbers of the
    layers (default: from 0).
    """
    rule = rule or MedianDeviation()
    limits = thresholds(norms, rule)
    mask = _above(norms, limits)
    numbers = range(len(norms)) if layers is None else layers
    rows = []
    for place, number in enumerate(numbers):
        following = mask[place + 1] if place + 1 < len(mask) else None
        rows.append(_layer_outliers(norms[place].double(), mask[place], following, number, limits[place]))
    return OutlierStatistics(rule=rule.name, layers=tuple(rows))


def _layer_outliers(
    norms: Float[Tensor, "batch rows cols"],
    mask: Bool[Tensor, "batch rows cols"],
    following: Bool[Tensor, "batch rows cols"] | None,
    number: int,
    threshold: float,
) -> LayerOutliers:
    finite = _finite(norms)
    per_image = mask.double().mean(dim=(1, 2))
    middle = median(finite)
    highest = float(finite.max()) if finite.numel() else math.nan
    together = float((mask & following).sum()) if following is not None else math.nan
    return LayerOutliers(
        layer=number,
        threshold=threshold,
        share=float(mask.double().mean()),
        share_deviation=float(per_image.std(correction=0)),
        outlier_mean=_mean(norms[mask]),
        rest_mean=_mean(norms[~mask]),
        maximum=highest,
        median=middle,
        ratio=highest / middle if middle else math.nan,
        recurrence=_recurrence(mask),
        persistence=together / int(mask.sum()) if mask.any() else math.nan,
    )


def _recurrence(mask: Bool[Tensor, "batch rows cols"]) -> float:
    """Share of the other images with an outlier at the same position, mean over outliers."""
    batch, found = mask.shape[0], mask.sum(0).double()
    if batch < 2 or not mask.any():
        return math.nan
    return float((found * (found - 1)).sum() / ((batch - 1) * found.sum()))


def median(values: Float[Tensor, "values"]) -> float:
    """The median, for an even number of values the mean of the two middle ones; NaN without values."""
    return float(np.median(values.cpu().numpy())) if values.numel() else math.nan


def _finite(norms: Float[Tensor, "*shape"]) -> Float[Tensor, "tokens"]:
    flat = norms.double().flatten()
    return flat[torch.isfinite(flat)]


def _mean(values: Float[Tensor, "tokens"]) -> float:
    return float(values.mean()) if values.numel() else math.nan
