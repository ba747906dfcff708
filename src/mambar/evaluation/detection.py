"""COCO's evaluation of boxes and masks through pycocotools: AP, AP50, AP75, small, medium and large objects."""

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from mambar.errors import BackendUnavailable, DataError
from mambar.messages import needs_package

# Names of COCO's first six numbers. Small: below 32 x 32 pixels of area; large: above 96 x 96.
MEASURES: Final = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """The objects and the detections of an image, as COCO's annotations of plain data.

    Attributes:
        index: Index of the image in its dataset.
        size: (height, width) in pixels.
        objects: Annotations with category_id, bbox, area, iscrowd and, for masks, segmentation.
        detections: The same with score instead of iscrowd.
    """

    index: int
    size: tuple[int, int]
    objects: list[dict[str, Any]]
    detections: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class DetectionResult:
    """Average precision (0-1; NaN where there is no object to find).

    Attributes:
        metrics: box_ap, box_ap50, box_ap75, box_ap_small, box_ap_medium, box_ap_large, and the same of masks.
        per_class: Class → box_ap and box_ap50, and the same of masks.
        num_images: Images.
        num_objects: Objects without crowds.
    """

    metrics: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]
    num_images: int
    num_objects: int

    def to_dict(self) -> dict[str, Any]:
        """All fields for JSON; NaN becomes null."""
        return {"format_version": 1, **_without_nan(asdict(self))}


def evaluate_records(records: Iterable[ImageRecord], classes: Sequence[str], *, masks: bool) -> DetectionResult:
    """The result over the records in the order of their indices; one that is given twice counts once."""
    unique = {record.index: record for record in records}
    ordered = [unique[index] for index in sorted(unique)]
    num_objects = sum(not each["iscrowd"] for record in ordered for each in record.objects)
    if not num_objects:
        raise DataError("there is nothing to measure: the evaluated images have no objects; check the annotations.")
    metrics: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {name: {} for name in classes}
    for kind, name in (("bbox", "box"), ("segm", "mask"))[: 2 if masks else 1]:
        stats, precision = _coco_stats(ordered, classes, kind)
        metrics |= {f"{name}_{measure}": value for measure, value in zip(MEASURES, stats, strict=True)}
        for label, class_name in enumerate(classes):
            # (IoU thresholds, recalls), for all areas and 100 detections.
            own = precision[:, :, label, 0, 2]
            per_class[class_name] |= {f"{name}_ap": _mean(own), f"{name}_ap50": _mean(own[0])}
    return DetectionResult(metrics=metrics, per_class=per_class, num_images=len(ordered), num_objects=num_objects)


def coco_classes() -> tuple[Any, Any]:
    """pycocotools' COCO and COCOeval; BackendUnavailable if it is not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise BackendUnavailable(needs_package("the evaluation of boxes", "pycocotools", extra="detection")) from error
    return COCO, COCOeval


def _coco_stats(records: Sequence[ImageRecord], classes: Sequence[str], kind: str) -> tuple[list[float], np.ndarray]:
    """COCO's first six numbers, and its precision (threshold, recall, class, area, detections)."""
    coco_class, evaluator = coco_classes()
    images = [{"id": each.index, "height": each.size[0], "width": each.size[1]} for each in records]
    categories = [{"id": label, "name": name} for label, name in enumerate(classes)]

    def indexed(part: str) -> Any:
        annotations = [
            {"iscrowd": 0, **each, "image_id": record.index} for record in records for each in getattr(record, part)
        ]
        if part == "detections" and kind == "bbox":
            annotations = [{**each, "area": each["bbox"][2] * each["bbox"][3]} for each in annotations]
        coco = coco_class()
        # An id of 0 would stand for no match.
        numbered = [{**each, "id": number} for number, each in enumerate(annotations, 1)]
        coco.dataset = {"images": images, "categories": categories, "annotations": numbered}
        coco.createIndex()
        return coco

    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator(indexed("objects"), indexed("detections"), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [math.nan if value < 0 else float(value) for value in evaluation.stats[:6]], evaluation.eval["precision"]


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
