"""Classification metrics as integer counts, which can be summed over processes without rounding."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.errors import DataError


def top_k_correct(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, "batch"], ks: Sequence[int] = (1, 5)
) -> Int64[Tensor, "ks"]:
    """The number of images whose class is among the k largest logits, for each k.

    Of equal logits, the one with the lower index ranks first, so the result does not depend on a sort. An image with
    NaN logits counts as wrong.
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
    """The number of images by true class (row) and predicted class (column)."""
    flat = labels * num_classes + predicted
    return torch.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


class LossSum:
    """A sum of losses that does not depend on their order.

    Attributes:
        counts: the sum in integer multiples of 2⁻²⁴, and the number of losses that are not finite.
    """

    _UNIT = 2.0**-24
    _LARGEST = 2.0**16

    def __init__(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64)

    def add(self, losses: Float[Tensor, "batch"]) -> None:
        """Adds the losses of some images; a loss above 65,536 counts as 65,536."""
        finite = torch.isfinite(losses)
        clipped = torch.where(finite, losses, 0.0).clamp(max=self._LARGEST)
        units = torch.round(clipped / self._UNIT).long().sum()
        self.counts += torch.stack([units, (~finite).sum()]).cpu()

    @classmethod
    def mean(cls, counts: Int64[Tensor, "2"], num_images: int) -> float:
        """The mean loss for `counts`, which may be summed over processes; NaN if any loss is not finite."""
        units, non_finite = (int(count) for count in counts)
        return math.nan if non_finite else units * cls._UNIT / num_images


def check_num_classes(num_classes: int, classes: Sequence[str]) -> None:
    """Raises `DataError` unless a model of `num_classes` outputs can be evaluated on data with `classes`."""
    if num_classes != len(classes):
        raise DataError(
            f"the model has {num_classes} classes, the data {len(classes)} ({', '.join(classes[:5])}, …); "
            "evaluate on data with the classes it was trained on."
        )
