"""Confidence intervals and paired differences over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A difference paired by seed: mean, half-width of its 95 % interval, two-sided p value (t-test), seeds."""

    mean: float
    half_width: float
    p_value: float
    seeds: int

    @property
    def decided(self) -> bool:
        """True if the interval excludes zero."""
        return abs(self.mean) > self.half_width

    def text(self, unit: str = "") -> str:
        """Mean, interval and decision as text: "-1.50 ± 6.35 points, not decided"."""
        return f"{self.mean:+.2f} ± {self.half_width:.2f}{unit}, {'decided' if self.decided else 'not decided'}"


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean (Student's t); None for a single value."""
    from scipy.special import stdtrit

    count = len(values)
    if count < 2:
        return None
    return float(stdtrit(count - 1, 0.975)) * statistics.stdev(values) / math.sqrt(count)


def paired(ours: Sequence[float], reference: Sequence[float]) -> Paired | None:
    """The difference ours - reference, paired by seed; None with fewer than two seeds."""
    if len(ours) != len(reference) or len(ours) < 2:
        return None
    differences = [a - b for a, b in zip(ours, reference, strict=True)]
    width = half_width(differences)
    assert width is not None
    mean = math.fsum(differences) / len(differences)
    return Paired(mean=mean, half_width=width, p_value=_p_value(differences), seeds=len(differences))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected by Holm's method for the number of tests, in the given order."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _p_value(differences: Sequence[float]) -> float:
    """The two-sided p value of a t-test against zero."""
    from scipy.special import stdtr

    deviation, mean = statistics.stdev(differences), statistics.fmean(differences)
    if deviation == 0:
        return 0.0 if mean else 1.0
    return 2 * float(stdtr(len(differences) - 1, -abs(mean) / deviation * math.sqrt(len(differences))))
