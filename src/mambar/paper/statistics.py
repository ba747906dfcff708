"""Confidence intervals and paired differences over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A difference paired by seed: mean, half-width of its 95 % interval, number of seeds."""

    mean: float
    half_width: float
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
    return Paired(mean=math.fsum(differences) / len(differences), half_width=width, seeds=len(differences))
