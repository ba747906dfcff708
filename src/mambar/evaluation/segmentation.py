"""Semantic segmentation on held-out images: counts of pixels, from which every number follows.

Counts are whole numbers, added up over images and processes, so the result does not depend on batches, order or the
number of processes. Definitions: IoU of a class = hits / (hits + missed + false) over all pixels of the data
together, as ADE20K's and Cityscapes' evaluations; mIoU = mean over the classes that occur in masks or predictions.
Boundary F-score of a class = harmonic mean of the share of predicted border pixels that lie near a true one and the
share of true ones near a predicted one, over all images together.
`tests/evaluation/test_segmentation.py` has cases counted by hand.
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

# How far a border may be off, as a share of the image's diagonal (the boundary F-score's convention).
BOUNDARY_TOLERANCE = 0.0075


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationCounts:
    """What was counted: pixels of a class (row) taken for another (column), and border pixels a class.

    `borders` has a row a class: border pixels predicted, of them near a true border, true border pixels, of them near
    a predicted one.
    """

    confusion: Int64[Tensor, "classes classes"]
    borders: Int64[Tensor, "classes 4"]

    @classmethod
    def zeros(cls, num_classes: int) -> "SegmentationCounts":
        """Nothing counted yet."""
        return cls(
            confusion=torch.zeros(num_classes, num_classes, dtype=torch.int64),
            borders=torch.zeros(num_classes, 4, dtype=torch.int64),
        )

    def __add__(self, other: "SegmentationCounts") -> "SegmentationCounts":
        return SegmentationCounts(confusion=self.confusion + other.confusion, borders=self.borders + other.borders)

    def flatten(self) -> Int64[Tensor, "counts"]:
        """All counts in a row, for a sum over processes."""
        return torch.cat([self.confusion.reshape(-1), self.borders.reshape(-1)])

    @classmethod
    def unflatten(cls, counts: Int64[Tensor, "counts"], num_classes: int) -> "SegmentationCounts":
        """Undoes `flat`."""
        confusion, borders = counts.cpu().split([num_classes**2, 4 * num_classes])
        return cls(confusion=confusion.reshape(num_classes, -1), borders=borders.reshape(num_classes, 4))


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationResult:
    """The numbers of an evaluation; shares are fractions 0-1, None for a class that occurs nowhere."""

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
        """The labeled pixels evaluated."""
        return int(self.confusion.sum())

    def to_dict(self) -> dict[str, object]:
        """Everything as JSON can hold it."""
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


def count(
    predicted: Integer[Tensor, "*batch height width"],
    labels: Integer[Tensor, "*label_batch label_height label_width"],
    num_classes: int,
    *,
    tolerance: int | None = None,
) -> SegmentationCounts:
    """Counts predicted against true classes of one image or of several of one size.

    Pixels labeled `IGNORE` are left out, whatever was predicted. `tolerance` in pixels is how far borders may be
    apart (None: `BOUNDARY_TOLERANCE` of the diagonal, rounded up). Raises `DataError` for other values.
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
    flat = labels[valid] * num_classes + predicted[valid]
    confusion = torch.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)
    if tolerance is None:
        tolerance = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*labels.shape[-2:]))
    images = zip(predicted.reshape(-1, *predicted.shape[-2:]), labels.reshape(-1, *labels.shape[-2:]), strict=True)
    borders = torch.zeros(num_classes, 4, dtype=torch.int64, device=labels.device)
    for guess, truth in images:
        borders += _border_counts(guess, truth, num_classes, tolerance)
    return SegmentationCounts(confusion=confusion.cpu(), borders=borders.cpu())


def compute_metrics(counts: SegmentationCounts, classes: Sequence[str], *, loss: float | None = None) -> SegmentationResult:
    """The numbers that follow from the counts."""
    confusion = counts.confusion.double()
    hits, true, guessed = confusion.diag(), confusion.sum(1), confusion.sum(0)
    union = true + guessed - hits
    total = float(confusion.sum())
    border = counts.borders.double()
    precision, recall = border[:, 1] / border[:, 0].clamp(min=1), border[:, 3] / border[:, 2].clamp(min=1)
    agreed = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    bordered = (border[:, 0] + border[:, 2] > 0).double()
    return SegmentationResult(
        classes=tuple(classes),
        confusion=counts.confusion.numpy(),
        per_class=_shares(hits, union, classes),
        per_class_accuracy=_shares(hits, true, classes),
        per_class_boundary=_shares(agreed, bordered, classes),
        miou=_mean_share(hits, union),
        pixel_accuracy=float(hits.sum()) / total if total else 0.0,
        mean_accuracy=_mean_share(hits, true),
        boundary_f=_mean_share(agreed, bordered),
        loss=loss,
    )


def image_iou(
    predicted: Integer[Tensor, "height width"], labels: Integer[Tensor, "height width"], num_classes: int
) -> float:
    """mIoU of one image over the classes that occur in it: what "best" and "worst" images are sorted by."""
    valid = labels != IGNORE
    flat = labels[valid].long() * num_classes + predicted[valid].long()
    confusion = torch.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes).double()
    return _mean_share(confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag())


def _shares(part: Tensor, whole: Tensor, names: Sequence[str]) -> dict[str, float | None]:
    pairs = zip(names, part.tolist(), whole.tolist(), strict=True)
    return {name: some / every if every else None for name, some, every in pairs}


def _mean_share(part: Tensor, whole: Tensor) -> float:
    there = whole > 0
    return float((part[there] / whole[there]).mean()) if bool(there.any()) else 0.0


def _border_counts(guess: Tensor, truth: Tensor, num_classes: int, tolerance: int) -> Int64[Tensor, "classes 4"]:
    valid = truth != IGNORE
    counts = torch.zeros(num_classes, 4, dtype=torch.int64, device=truth.device)
    present = torch.bincount(torch.cat([guess[valid], truth[valid]]), minlength=num_classes).nonzero().flatten()
    for label in present.tolist():
        guessed, true = _border((guess == label) & valid, valid), _border((truth == label) & valid, valid)
        near_true, near_guessed = _widened(true, tolerance), _widened(guessed, tolerance)
        row = (guessed, guessed & near_true, true, true & near_guessed)
        counts[label] = torch.stack([where.sum() for where in row])
    return counts


def _border(inside: Bool[Tensor, "height width"], valid: Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """The pixels of a region that touch (at a side) a labeled pixel outside it; the image's edge is no border."""
    outside = valid & ~inside
    touching = torch.zeros_like(inside)
    touching[1:] |= outside[:-1]
    touching[:-1] |= outside[1:]
    touching[:, 1:] |= outside[:, :-1]
    touching[:, :-1] |= outside[:, 1:]
    return inside & touching


def _widened(border: Bool[Tensor, "height width"], distance: int) -> Bool[Tensor, "height width"]:
    """All pixels at most `distance` pixels (Euclidean) from one of the border's."""
    padded = torch.nn.functional.pad(border, (distance,) * 4)
    steps = torch.arange(-distance, distance + 1, device=border.device)
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    near = down**2 + right**2 <= distance**2
    offsets = down[near] * padded.shape[1] + right[near]
    reached = padded.flatten()
    # Borders are few pixels: each marks the disk around it.
    reached[(reached.nonzero() + offsets).flatten()] = True
    return reached.view_as(padded)[distance : distance + border.shape[0], distance : distance + border.shape[1]]
