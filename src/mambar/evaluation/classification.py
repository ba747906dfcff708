"""Evaluates a classifier: top-1, top-5, per-class accuracy and confusion, with any number of processes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from mambar.data.loading.loaders import Batch
from mambar.deprecated import accept_old_names
from mambar.errors import DataError
from mambar.evaluation.metrics import LossSum, check_num_classes, confusion_counts, top_k_correct
from mambar.nn.eval_mode import eval_mode

# Number of misclassified images that are kept for reports.
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
        misclassified: indices in the dataset of the first misclassified images, in ascending order.
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


class ClassificationCounts:
    """Counts of a classifier's logits, added batch by batch, from which `result` makes the metrics."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._num_correct = torch.zeros(2, dtype=torch.int64)
        self._confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        self._losses = LossSum()
        self._misclassified: list[int] = []

    def add(self, logits: Tensor, labels: Int64[Tensor, "batch"], indices: Int64[Tensor, "batch"]) -> None:
        """Adds the logits (batch, classes) of the images with these indices in the dataset."""
        num_classes = len(self.classes)
        check_num_classes(logits.shape[1], self.classes)
        logits = logits.float()
        self._num_correct += top_k_correct(logits, labels, (1, min(5, num_classes))).cpu()
        predicted = logits.argmax(1)
        self._confusion += confusion_counts(predicted, labels, num_classes).cpu()
        if len(self._misclassified) < _NUM_MISCLASSIFIED:
            self._misclassified += indices[(predicted != labels).cpu()].tolist()
        self._losses.add(nn.functional.cross_entropy(logits.double(), labels, reduction="none"))

    def result(
        self,
        *,
        all_reduce: Callable[[Tensor], Tensor] = lambda counts: counts,
        gather_objects: Callable[[Any], list[Any]] = lambda value: [value],
    ) -> ClassificationResult:
        """The metrics over all processes; the arguments are those of `evaluate`."""
        size = len(self.classes)
        counted = all_reduce(torch.cat([self._num_correct, self._losses.counts, self._confusion.reshape(-1)])).cpu()
        matrix = counted[4:].reshape(size, size).numpy()
        count = int(matrix.sum())
        if not count:
            raise DataError("there is nothing to measure: none of the images to evaluate could be read; replace them.")
        # Each process has the first of its own images, so the first of all are among them.
        found = sorted(index for each in gather_objects(self._misclassified) for index in each)
        return ClassificationResult(
            classes=self.classes,
            confusion=matrix,
            top1=int(counted[0]) / count,
            top5=int(counted[1]) / count,
            loss=LossSum.mean(counted[2:4], count),
            misclassified=tuple(found[:_NUM_MISCLASSIFIED]),
        )


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
    gather_objects: Callable[[Any], list[Any]] = lambda value: [value],
) -> ClassificationResult:
    """Metrics of `model` in evaluation mode on batches of the data loader.

    prepare: applied to the images on the device, e.g. normalization. all_reduce: sums counts over the processes.
    gather_objects: the values of all processes. The loss is the mean cross-entropy, computed in float64.
    """
    counts = ClassificationCounts(classes)
    with eval_mode(model), torch.inference_mode():
        for batch in batches:
            moved = batch.to(device)
            with autocast():
                logits = model(prepare(moved.images) if prepare else moved.images)
            counts.add(logits, moved.labels, batch.indices)
    return counts.result(all_reduce=all_reduce, gather_objects=gather_objects)
