"""Masks of objects in COCO's forms: polygons, or run lengths of the pixels in column order.

Writing run lengths needs numpy only; polygons and compressed run lengths are read by pycocotools.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from mambar.errors import BackendUnavailable, DataError, ImageError
from mambar.messages import needs_package, one_line

# [[x, y, x, y, …], …] or {"size": [height, width], "counts": [run, …] or a compressed string}.
Segmentation = list[list[float]] | dict[str, Any]


def run_lengths(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """The mask as COCO's uncompressed run lengths; the first run is of pixels outside."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


class TargetObject(NamedTuple):
    """An object of an image.

    Attributes:
        label: Class index.
        box: (x0, y0, x1, y1) in pixels, right and bottom exclusive.
        area: Area of the mask in pixels, by which COCO's evaluation separates small from large objects.
        crowd: True for a region of many objects: not trained on, and detections inside are not counted.
        segmentation: The mask; None if only the box is known.
    """

    label: int
    box: Sequence[float]
    area: float
    crowd: bool = False
    segmentation: Segmentation | None = None

    @classmethod
    def of_mask(cls, label: int, mask: Bool[np.ndarray, "height width"]) -> "TargetObject":
        """The object of a mask that is not empty."""
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1))
        return cls(label, box, float(mask.sum()), segmentation=run_lengths(mask))


def object_targets(objects: Sequence[TargetObject]) -> dict[str, Any]:
    """The `targets` of a sample. Segmentations are a tuple, since loaders and devices convert what is in lists."""
    return {
        "boxes": torch.tensor([each.box for each in objects], dtype=torch.float32).reshape(-1, 4),
        "box_labels": torch.tensor([each.label for each in objects], dtype=torch.int64),
        "areas": torch.tensor([each.area for each in objects], dtype=torch.float64),
        "crowd": torch.tensor([each.crowd for each in objects], dtype=torch.bool),
        "segmentations": tuple(each.segmentation for each in objects),
    }


def target_objects(targets: Mapping[str, Any]) -> list[TargetObject]:
    """The objects of a sample's targets; areas are those of the boxes, and no object is a crowd, if not given.

    Raises DataError for boxes that are not (x0, y0, x1, y1), or not as many labels.
    """
    if "boxes" not in targets or "box_labels" not in targets:
        raise DataError("detection needs boxes; give data of objects, or samples with targets boxes and box_labels.")
    boxes = torch.as_tensor(targets["boxes"]).double()
    labels = torch.as_tensor(targets["box_labels"])
    boxes = boxes.reshape(-1, 4) if not boxes.numel() else boxes
    are_boxes = boxes.ndim == 2 and boxes.shape[1] == 4 and bool((boxes[:, :2] <= boxes[:, 2:]).all())
    if not are_boxes or labels.shape != boxes.shape[:1]:
        raise DataError(
            f"boxes={one_line(boxes.tolist(), limit=60)} with {labels.numel()} box_labels are no objects; give one "
            "label and (x0, y0, x1, y1) with x0 < x1 and y0 < y1 for each."
        )
    areas = torch.as_tensor(targets.get("areas", (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    crowd = torch.as_tensor(targets.get("crowd", torch.zeros(len(boxes), dtype=torch.bool)))
    segmentations = targets.get("segmentations", (None,) * len(boxes))
    columns = labels.tolist(), boxes.tolist(), areas.tolist(), crowd.tolist(), segmentations
    return [TargetObject(*each) for each in zip(*columns, strict=True)]


def check_segmentation(given: Any, height: int, width: int) -> None:
    """Raises ImageError for a segmentation that COCO does not define, or of another size than its image."""
    if isinstance(given, list):
        is_known = bool(given) and all(
            isinstance(each, list)
            and len(each) >= 6
            and len(each) % 2 == 0
            and all(isinstance(number, int | float) and math.isfinite(number) for number in each)
            for each in given
        )
    else:
        counts = given.get("counts") if isinstance(given, dict) else None
        is_known = isinstance(given, dict) and given.get("size") == [height, width]
        if isinstance(counts, list):
            is_known &= all(type(run) is int and run >= 0 for run in counts) and sum(counts) == height * width
        else:
            is_known &= isinstance(counts, str)
    if not is_known:
        raise ImageError(
            f"segmentation {one_line(given, limit=60)} is neither polygons nor run lengths of {width}x{height} pixels."
        )


def compressed_masks(segmentations: Sequence[Segmentation | None], height: int, width: int) -> list[dict[str, Any]]:
    """The masks as pycocotools' compressed run lengths; ImageError for one that is invalid or of another size."""
    coco = _pycocotools()
    found = []
    for given in segmentations:
        if given is None:
            raise DataError("an object has a box but no mask; use a recipe without masks (task_options.masks=false).")
        check_segmentation(given, height, width)
        # pycocotools raises Exception itself.
        try:
            if isinstance(given, list):
                made = coco.merge(coco.frPyObjects(given, height, width))
            else:
                made = coco.frPyObjects(given, height, width) if isinstance(given["counts"], list) else given
        except Exception as error:
            raise ImageError(f"segmentation {one_line(given, limit=60)} cannot be read: {one_line(error)}.") from error
        found.append(made)
    return found


def decoded_masks(
    segmentations: Sequence[Segmentation | None], height: int, width: int
) -> UInt8[Tensor, "objects height width"]:
    """The masks as 0 and 1."""
    if not segmentations:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    planes = _pycocotools().decode(compressed_masks(segmentations, height, width))
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise BackendUnavailable(needs_package("masks of objects", "pycocotools", extra="detection")) from error
    return mask
