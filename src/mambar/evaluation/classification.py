"""Evaluates a classifier: top-1, top-5, per-class accuracy and confusion, with any number of processes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from mambar.data.loading.loaders import Batch
from mambar.deprecated import accept_old_names
from mambar.errors import DataError
from mambar.evaluation.metrics import LossSum, check_num_classes, confusion_counts, top_k_correct
from mambar.nn.eval_mode import eval_mode

# As many misclassified images are remembered, for reports.
_NUM_MISCLASSIFIED = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationResult:
    """The metrics of a classifier.

    Attributes:
        classes: class names, in label order.
        confusion: the number of images by true class (row) and predicted class (column).
        top1: fraction (0-1) of images whose class has the largest logit.
        top5: fraction (0-1) of images whose class is among the five largest logits.
        loss: mean cross-entropy.
        misclassified: indices in the dataset of the first misclassified images that this process evaluated.
    """

    classes: tuple[str, ...]
    confusion: Int64[np.ndarray, "classes classes"]
    top1: float
    top5: float
    loss: float
    misclassified: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """The number of images."""
        return int(self.confusion.sum())

    @property
    def per_class(self) -> dict[str, float | None]:
        """Top-1 accuracy (0-1) of each class; None for a class without images."""
        totals, num_correct = self.confusion.sum(1), np.diag(self.confusion)
        return {
            name: float(correct / total) if total else None
            for name, correct, total in zip(self.classes, num_correct, totals, strict=True)
        }

    def to_dict(self) -> dict[str, object]:
        """All metrics as JSON values."""
        return {
            "format_version": 1,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "count": self.count,
            "per_class": self.per_class,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }


@accept_old_names({"total": "all_reduce"})
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    classes: Sequence[str],
    device: torch.device | str = "cpu",
    prepare: Callable[[Tensor], Tensor] | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    all_reduce: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> ClassificationResult:
    """Metrics of `model` in evaluation mode on batches of the data loader.

    prepare: applied to the images on the device, e.g. normalization. all_reduce: sums counts over the processes.
    The loss is the mean cross-entropy, computed in float64.
    """
    num_classes = len(classes)
    num_correct = torch.zeros(2, dtype=torch.int64)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    losses = LossSum()
    misclassified: list[int] = []
    with eval_mode(model), torch.inference_mode():
        for batch in batches:
            moved = batch.to(device)
            images = prepare(moved.images) if prepare else moved.images
            with autocast():
                logits = model(images)
            check_num_classes(logits.shape[1], classes)
            logits = logits.float()
            num_correct += top_k_correct(logits, moved.labels, (1, min(5, num_classes))).cpu()
            predicted = logits.argmax(1)
            confusion += confusion_counts(predicted, moved.labels, num_classes).cpu()
            if len(misclassified) < _NUM_MISCLASSIFIED:
                misclassified += batch.indices[(predicted != moved.labels).cpu()].tolist()
            losses.add(nn.functional.cross_entropy(logits.double(), moved.labels, reduction="none"))
    counted = all_reduce(torch.cat([num_correct, losses.counts, confusion.reshape(-1)])).cpu()
    matrix = counted[4:].reshape(num_classes, num_classes).numpy()
    count = int(matrix.sum())
    if not count:
        raise DataError("there is nothing to measure: none of the images to evaluate could be read; replace them.")
    return ClassificationResult(
        classes=tuple(classes),
        confusion=matrix,
        top1=int(counted[0]) / count,
        top5=int(counted[1]) / count,
        loss=LossSum.mean(counted[2:4], count),
        misclassified=tuple(misclassified[:_NUM_MISCLASSIFIED]),
    )
