"""Classification on held-out images: top-1, top-5, per class, confusion, the same on any number of processes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from mambar.data.loading.loaders import Batch
from mambar.errors import DataError
from mambar.evaluation.metrics import LossSum, confusion_counts, top_k_correct


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationResult:
    """What an evaluation counted; shares are fractions 0-1."""

    classes: tuple[str, ...]
    confusion: Int64[np.ndarray, "classes classes"]
    top1: float
    top5: float
    loss: float

    @property
    def count(self) -> int:
        """The images evaluated."""
        return int(self.confusion.sum())

    @property
    def per_class(self) -> dict[str, float | None]:
        """Top-1 of each class; None where the data has no image of it."""
        totals, right = self.confusion.sum(1), np.diag(self.confusion)
        return {
            name: float(hit / total) if total else None
            for name, hit, total in zip(self.classes, right, totals, strict=True)
        }

    def to_dict(self) -> dict[str, object]:
        """Everything as JSON can hold it."""
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


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    classes: Sequence[str],
    device: torch.device | str = "cpu",
    prepare: Callable[[Tensor], Tensor] | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    total: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> ClassificationResult:
    """Evaluates `model`, in evaluation mode for the time being, on batches of images as the loader gives them.

    `prepare` acts on the images on the device (normalization); `total` adds counts up over the processes. The mean
    loss is the cross-entropy's, computed in float64.
    """
    was_training = model.training
    model.eval()
    num_classes = len(classes)
    hits = torch.zeros(2, dtype=torch.int64)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    losses = LossSum()
    with torch.inference_mode():
        for batch in batches:
            moved = batch.to(device)
            images = prepare(moved.images) if prepare else moved.images
            with autocast():
                logits = model(images)
            _check_classes(logits, classes)
            logits = logits.float()
            hits += top_k_correct(logits, moved.labels, (1, min(5, num_classes))).cpu()
            confusion += confusion_counts(logits.argmax(1), moved.labels, num_classes).cpu()
            losses.add(nn.functional.cross_entropy(logits.double(), moved.labels, reduction="none"))
    model.train(was_training)
    counted = total(torch.cat([hits, losses.counts, confusion.reshape(-1)])).cpu()
    matrix = counted[4:].reshape(num_classes, num_classes).numpy()
    count = max(int(matrix.sum()), 1)
    return ClassificationResult(
        classes=tuple(classes),
        confusion=matrix,
        top1=int(counted[0]) / count,
        top5=int(counted[1]) / count,
        loss=LossSum.mean(counted[2:4], count),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One evaluated image: the model's input, its label, the predicted class and that class's probability."""

    image: Shaped[Tensor, "channels height width"]
    label: int
    predicted: int
    probability: float


def examples(
    model: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    labels: Int64[Tensor, "batch"],
) -> list[Example]:
    """What the model says to some images, in evaluation mode."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        probabilities = model(images).float().softmax(1).cpu()
    model.train(was_training)
    best = probabilities.max(1)
    return [
        Example(image=image, label=int(label), predicted=int(index), probability=float(value))
        for image, label, index, value in zip(images.cpu(), labels, best.indices, best.values, strict=True)
    ]


def _check_classes(logits: Tensor, classes: Sequence[str]) -> None:
    if logits.shape[1] != len(classes):
        raise DataError(
            f"the model has {logits.shape[1]} classes, the data {len(classes)} ({', '.join(classes[:5])}, …); "
            "evaluate on data with the classes it was trained on."
        )
