"""Distributions of norms: counts in fixed bins, in memory that does not depend on the number of images."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.errors import InputError

# Norms from 2^-20 to 2^30 in 64 bins an octave: a bin is 1.1 % wide, whatever the scale of a layer.
LOWEST_OCTAVE, OCTAVES, BINS_PER_OCTAVE = -20, 50, 64
NUM_BINS = OCTAVES * BINS_PER_OCTAVE


def bin_edges(bins_per_octave: int = BINS_PER_OCTAVE) -> Float[np.ndarray, "edges"]:
    """The edges of the bins; smaller and larger norms are counted in the first and the last bin."""
    return 2.0 ** (LOWEST_OCTAVE + np.arange(OCTAVES * bins_per_octave + 1) / bins_per_octave)


def count_norms(norms: Float[Tensor, "layers *shape"]) -> Int64[Tensor, "layers bins"]:
    """How many norms of each layer fall into each bin, on the device of `norms`; NaN and infinity are omitted."""
    num_layers = norms.shape[0]
    flat = norms.reshape(num_layers, -1)
    place = torch.log2(flat.double().clamp_min(1e-300))
    index = ((place - LOWEST_OCTAVE) * BINS_PER_OCTAVE).floor().nan_to_num(0.0).clamp(0, NUM_BINS - 1).long()
    index = index + torch.arange(num_layers, device=flat.device)[:, None] * NUM_BINS
    counts = torch.zeros(num_layers * NUM_BINS, dtype=torch.int64, device=flat.device)
    counts.index_add_(0, index.flatten(), torch.isfinite(flat).long().flatten())
    return counts.reshape(num_layers, NUM_BINS)


@dataclass(frozen=True, kw_only=True, eq=False)
class NormDistribution:
    """The norms of one layer: counts on `bin_edges()`, and the exact minimum, maximum and mean of the finite norms."""

    counts: Int64[np.ndarray, "bins"]
    minimum: float
    maximum: float
    mean: float
    non_finite: int = 0

    @property
    def count(self) -> int:
        """The number of finite norms."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The norm that `share` (0-1) of the norms do not exceed, exact to a bin width of 1.1 %."""
        if not 0 <= share <= 1:
            raise InputError(f"share={share} is not between 0 and 1.")
        if not self.count:
            return math.nan
        cumulative = np.cumsum(self.counts)
        wanted = share * self.count
        index = min(int(np.searchsorted(cumulative, max(wanted, 1e-9))), NUM_BINS - 1)
        before = cumulative[index] - self.counts[index]
        inside = (wanted - before) / max(int(self.counts[index]), 1)
        value = 2.0 ** (LOWEST_OCTAVE + (index + min(max(inside, 0.0), 1.0)) / BINS_PER_OCTAVE)
        return float(min(max(value, self.minimum), self.maximum))

    @property
    def median(self) -> float:
        """The median norm."""
        return self.quantile(0.5)

    @property
    def mode(self) -> float:
        """The most common norm: the center of the densest bin, 16 bins an octave (4.4 % wide)."""
        if not self.count:
            return math.nan
        edges, density = self.density(bins_per_octave=16)
        densest = int(np.argmax(density))
        return float(min(max(math.sqrt(edges[densest] * edges[densest + 1]), self.minimum), self.maximum))

    def density(self, *, bins_per_octave: int = 16) -> tuple[Float[np.ndarray, "edges"], Float[np.ndarray, "bins"]]:
        """Edges and density (share of the norms per unit of norm) on wider bins; outer empty bins are omitted."""
        if bins_per_octave < 1 or BINS_PER_OCTAVE % bins_per_octave:
            raise InputError(f"bins_per_octave={bins_per_octave} must divide {BINS_PER_OCTAVE}.")
        wide = self.counts.reshape(-1, BINS_PER_OCTAVE // bins_per_octave).sum(axis=1)
        edges = bin_edges(bins_per_octave)
        filled = np.flatnonzero(wide)
        first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, 0)
        part = slice(first, last + 1)
        density = wide[part] / max(self.count, 1) / np.diff(edges)[part]
        return edges[first : last + 2], density

    def to_dict(self) -> dict[str, int | float]:
        """The main numbers as a JSON object."""
        quantiles = {f"quantile_{share:g}": self.quantile(share) for share in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)}
        ends = {"minimum": self.minimum, "maximum": self.maximum, "mean": self.mean, "mode": self.mode}
        return {"count": self.count, "non_finite": self.non_finite} | ends | quantiles


class DistributionCounter:
    """Accumulates the norms of all batches on their device."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self._sums: tuple[Tensor, ...] | None = None

    def add(self, norms: Float[Tensor, "layers *shape"]) -> None:
        """Adds the norms of one batch."""
        flat = norms.reshape(self.num_layers, -1).double()
        finite = torch.isfinite(flat)
        if not flat.shape[1]:
            return
        found: tuple[Tensor, ...] = (
            count_norms(norms),
            flat.masked_fill(~finite, math.inf).amin(1),
            flat.masked_fill(~finite, -math.inf).amax(1),
            flat.masked_fill(~finite, 0.0).sum(1),
            (~finite).sum(1),
        )
        combine = (torch.add, torch.minimum, torch.maximum, torch.add, torch.add)
        if self._sums is not None:
            found = tuple(join(old, new) for join, old, new in zip(combine, self._sums, found, strict=True))
        self._sums = found

    def result(self) -> list[NormDistribution]:
        """One distribution a layer; without any norm its numbers are NaN."""
        if self._sums is None:
            empty = np.zeros(NUM_BINS, dtype=np.int64)
            nothing = NormDistribution(counts=empty, minimum=math.nan, maximum=math.nan, mean=math.nan)
            return [nothing] * self.num_layers
        counts, low, high, total, bad = (part.cpu().numpy() for part in self._sums)
        return [
            NormDistribution(
                counts=counts[layer],
                minimum=float(low[layer]) if counts[layer].any() else math.nan,
                maximum=float(high[layer]) if counts[layer].any() else math.nan,
                mean=float(total[layer] / counts[layer].sum()) if counts[layer].any() else math.nan,
                non_finite=int(bad[layer]),
            )
            for layer in range(self.num_layers)
        ]


def norm_distributions(norms: Float[Tensor, "layers *shape"]) -> list[NormDistribution]:
    """One distribution per layer of the given norms."""
    counter = DistributionCounter(norms.shape[0])
    counter.add(norms)
    return counter.result()
