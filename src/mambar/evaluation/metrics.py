"""Counts, not averages: what has been counted on several processes is added up, and stays exact for any data size."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def top_k_correct(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, "batch"], ks: Sequence[int] = (1, 5)
) -> Int64[Tensor, "ks"]:
    """For each k the number of images whose class is among the k largest logits.

    An image counts for k if fewer than k classes have a larger logit, or an equal one and a lower index, than its
    own: ties do not depend on a sort. NaN among an image's logits counts as a miss.
    """
    own = logits.gather(1, labels[:, None])  # (B, 1)
    index = torch.arange(logits.shape[1], device=logits.device)
    above = (logits > own) | ((logits == own) & (index < labels[:, None]))
    rank = above.sum(1)
    valid = ~torch.isnan(logits).any(1)
    return torch.stack([((rank < k) & valid).sum() for k in ks])


def confusion_counts(
    predicted: Int64[Tensor, "batch"], labels: Int64[Tensor, "batch"], num_classes: int
) -> Int64[Tensor, "classes classes"]:
    """How often a class (row) was taken for another (column)."""
    flat = labels * num_classes + predicted
    return torch.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


class LossSum:
    """A sum of losses that does not depend on the order: whole multiples of 2⁻²⁴, and how many were no number."""

    _UNIT = 2.0**-24
    _LARGEST = 2.0**16

    def __init__(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64)

    def add(self, losses: Float[Tensor, "batch"]) -> None:
        """Adds some images' losses, each at most 65,536."""
        good = torch.isfinite(losses)
        clipped = torch.where(good, losses, 0.0).clamp(max=self._LARGEST)
        units = torch.round(clipped / self._UNIT).long().sum()
        self.counts += torch.stack([units, (~good).sum()]).cpu()

    @classmethod
    def mean(cls, counts: Int64[Tensor, "2"], images: int) -> float:
        """The mean loss that (added up) counts stand for; NaN if any loss was no number."""
        units, bad = (int(count) for count in counts)
        return math.nan if bad else units * cls._UNIT / images
