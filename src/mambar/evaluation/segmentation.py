"""Semantic segmentation metrics, computed from integer pixel counts.

Counts are summed over images and processes, so the result depends on neither batches, order nor number of processes.

* IoU of a class: TP / (TP + FN + FP) over all pixels of the dataset, as in the evaluations of ADE20K and Cityscapes.
* mIoU: mean IoU of the classes that occur in masks or predictions.
* Boundary F-score of a class: harmonic mean of precision (fraction of predicted border pixels near a true one) and
  recall (fraction of true border pixels near a predicted one), over all images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor

from mambar.data.segmentation.masks import IGNORE
from mambar.errors import DataError, InputError
from mambar.evaluation.metrics import confusion_counts

# Largest distance of matching border pixels as a fraction of the image diagonal; conventional for this score.
BOUNDARY_TOLERANCE = 0.0075


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationCounts:
    """Pixel counts of one or more images; instances can be added.

    Attributes:
        confusion: number of pixels by true class (row) and predicted class (column).
        borders: for each class, the predicted border pixels, those of them near a true border, the true border
            pixels, and those of them near a predicted border.
    """

    confusion: Int64[Tensor, "classes classes"]
    borders: Int64[Tensor, "classes 4"]

    @classmethod
    def zeros(cls, num_classes: int) -> "SegmentationCounts":
        """Counts of no image."""
        return cls(
            confusion=torch.zeros(num_classes, num_classes, dtype=torch.int64),
            borders=torch.zeros(num_classes, 4, dtype=torch.int64),
        )

    def __add__(self, other: "SegmentationCounts") -> "SegmentationCounts":
        return SegmentationCounts(confusion=self.confusion + other.confusion, borders=self.borders + other.borders)

    def flatten(self) -> Int64[Tensor, "counts"]:
        """All counts as one vector, to be summed over processes."""
        return torch.cat([self.confusion.reshape(-1), self.borders.reshape(-1)])

    @classmethod
    def unflatten(cls, counts: Int64[Tensor, "counts"], num_classes: int) -> "SegmentationCounts":
        """The inverse of `flatten`."""
        confusion, borders = counts.cpu().split([num_classes**2, 4 * num_classes])
        return cls(confusion=confusion.reshape(num_classes, -1), borders=borders.reshape(num_classes, 4))


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationResult:
    """The metrics of a segmenter; fractions are 0-1, and None for a class that does not occur.

    Attributes:
        classes: class names, in label order.
        confusion: number of pixels by true class (row) and predicted class (column).
        per_class: IoU of each class.
        per_class_accuracy: fraction of the pixels of each class that are predicted correctly.
        per_class_boundary: boundary F-score of each class.
        miou: mean IoU.
        pixel_accuracy: fraction of pixels that are predicted correctly.
        mean_accuracy: mean of `per_class_accuracy`.
        boundary_f: mean of `per_class_boundary`.
        loss: mean cross-entropy of the labeled pixels.
    """

    classes: tuple[str, ...]
    confusion: Int64[np.ndarray, "classes classes"]
    per_class: dict[str, float | None]
    per_class_accuracy: dict[str, float | None]
    per_class_boundary: dict[str, float | None]
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    boundary_f: float
    loss: float | None = None

    @property
    def pixels(self) -> int:
        """The number of labeled pixels."""
        return int(self.confusion.sum())

    def to_dict(self) -> dict[str, object]:
        """All metrics as JSON values."""
        return {
            "format_version": 1,
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "boundary_f": self.boundary_f,
            "loss": self.loss,
            "pixels": self.pixels,
            "per_class_iou": self.per_class,
            "per_class_accuracy": self.per_class_accuracy,
            "per_class_boundary_f": self.per_class_boundary,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }


def count_pixels(
    predicted: Integer[Tensor, "*batch height width"],
    labels: Integer[Tensor, "*label_batch label_height label_width"],
    num_classes: int,
    *,
    tolerance: int | None = None,
) -> SegmentationCounts:
    """The pixel counts of one image or of several of one size; pixels labeled `IGNORE` are left out.

    tolerance: largest distance of matching border pixels; None for `BOUNDARY_TOLERANCE` of the diagonal, rounded up.
    Raises `DataError` for a label outside the classes.
    """
    if predicted.shape != labels.shape:
        raise InputError(
            f"predicted {tuple(predicted.shape)} and labels {tuple(labels.shape)} differ in shape; resize the logits."
        )
    predicted, labels = predicted.long(), labels.long()
    valid = labels != IGNORE
    for name, values in (("a mask", labels), ("the prediction", predicted)):
        outside = values[valid & ((values < 0) | (values >= num_classes))]
        if outside.numel():
            raise DataError(
                f"{name} holds {int(outside[0])}; {num_classes} classes have labels 0 to {num_classes - 1}."
            )
    confusion = confusion_counts(predicted[valid], labels[valid], num_classes)
    if tolerance is None:
        tolerance = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*labels.shape[-2:]))
    images = zip(predicted.reshape(-1, *predicted.shape[-2:]), labels.reshape(-1, *labels.shape[-2:]), strict=True)
    borders = torch.zeros(num_classes, 4, dtype=torch.int64, device=labels.device)
    for image_predicted, image_labels in images:
        borders += _border_counts(image_predicted, image_labels, num_classes, tolerance)
    return SegmentationCounts(confusion=confusion.cpu(), borders=borders.cpu())


def compute_metrics(
    counts: SegmentationCounts, classes: Sequence[str], *, loss: float | None = None
) -> SegmentationResult:
    """The metrics of pixel counts."""
    confusion = counts.confusion.double()
    correct, true, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
    union = true + predicted - correct
    total = float(confusion.sum())
    border = counts.borders.double()
    precision, recall = border[:, 1] / border[:, 0].clamp(min=1), border[:, 3] / border[:, 2].clamp(min=1)
    f_score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    has_border = (border[:, 0] + border[:, 2] > 0).double()
    return SegmentationResult(
        classes=tuple(classes),
        confusion=counts.confusion.numpy(),
        per_class=_ratios(correct, union, classes),
        per_class_accuracy=_ratios(correct, true, classes),
        per_class_boundary=_ratios(f_score, has_border, classes),
        miou=_mean_ratio(correct, union),
        pixel_accuracy=float(correct.sum()) / total if total else 0.0,
        mean_accuracy=_mean_ratio(correct, true),
        boundary_f=_mean_ratio(f_score, has_border),
        loss=loss,
    )


def image_iou(
    predicted: Integer[Tensor, "height width"], labels: Integer[Tensor, "height width"], num_classes: int
) -> float:
    """mIoU of one image over the classes that occur in its mask or prediction."""
    valid = labels != IGNORE
    confusion = confusion_counts(predicted[valid].long(), labels[valid].long(), num_classes).double()
    return _mean_ratio(confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag())


def _ratios(part: Tensor, whole: Tensor, names: Sequence[str]) -> dict[str, float | None]:
    pairs = zip(names, part.tolist(), whole.tolist(), strict=True)
    return {name: numerator / denominator if denominator else None for name, numerator, denominator in pairs}


def _mean_ratio(part: Tensor, whole: Tensor) -> float:
    occurs = whole > 0
    return float((part[occurs] / whole[occurs]).mean()) if bool(occurs.any()) else 0.0


def _border_counts(predicted: Tensor, labels: Tensor, num_classes: int, tolerance: int) -> Int64[Tensor, "classes 4"]:
    valid = labels != IGNORE
    counts = torch.zeros(num_classes, 4, dtype=torch.int64, device=labels.device)
    present = torch.cat([predicted[valid], labels[valid]]).unique()
    for label in present.tolist():
        found, true = _border((predicted == label) & valid, valid), _border((labels == label) & valid, valid)
        near_true, near_found = _dilate(true, tolerance), _dilate(found, tolerance)
        counts[label] = torch.stack([mask.sum() for mask in (found, found & near_true, true, true & near_found)])
    return counts


def _border(inside: Bool[Tensor, "height width"], valid: Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """The pixels of a region with a labeled 4-neighbor outside it; the edge of the image is not a border."""
    outside = valid & ~inside
    touching = torch.zeros_like(inside)
    touching[1:] |= outside[:-1]
    touching[:-1] |= outside[1:]
    touching[:, 1:] |= outside[:, :-1]
    touching[:, :-1] |= outside[:, 1:]
    return inside & touching


def _dilate(border: Bool[Tensor, "height width"], distance: int) -> Bool[Tensor, "height width"]:
    """The pixels within a Euclidean distance of `distance` pixels from the border."""
    padded = torch.nn.functional.pad(border, (distance,) * 4)
    steps = torch.arange(-distance, distance + 1, device=border.device)
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    near = down**2 + right**2 <= distance**2
    offsets = down[near] * padded.shape[1] + right[near]
    dilated = padded.flatten()
    # Borders have few pixels, so setting the disk around each is faster than a convolution.
    dilated[(dilated.nonzero() + offsets).flatten()] = True
    return dilated.view_as(padded)[distance : distance + border.shape[0], distance : distance + border.shape[1]]
