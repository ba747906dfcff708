"""Detects the objects of one image with a trained model: boxes, masks, pictures and files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from mambar.analysis.draw.color_maps import encode_png
from mambar.atomic_files import write_files
from mambar.data.detection.object_masks import run_lengths
from mambar.data.loading.images import read_for_inference
from mambar.detection.detector import Detector, check_sides, paste_mask
from mambar.detection.drawing import draw_objects
from mambar.hub.config_file import json_bytes
from mambar.hub.files import refuse_overwrite
from mambar.image_file import MAX_PIXELS
from mambar.messages import one_line
from mambar.nn.eval_mode import eval_mode

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """An image and the objects found in it, most probable first.

    Attributes:
        name: file name, or the argument `name` of `detect`.
        image: the image.
        boxes: (x0, y0, x1, y1) in pixels.
        labels: class index of each object.
        scores: probability (0-1) of the class.
        masks: mask of each box at 28 x 28 pixels; None without masks.
        classes: class names, in label order.
    """

    name: str
    image: UInt8[Tensor, "3 height width"]
    boxes: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, "objects"]
    scores: Float[Tensor, "objects"]
    masks: Float[Tensor, "objects 1 rows cols"] | None
    classes: tuple[str, ...]

    def class_name(self, label: int) -> str:
        """The name of a class."""
        return self.classes[label]

    def mask(self, index: int) -> Bool[np.ndarray, "height width"] | None:
        """The mask of an object at the size of the image; computed on each call, since all would need much memory."""
        if self.masks is None:
            return None
        height, width = self.image.shape[1:]
        return paste_mask(self.masks[index], self.boxes[index], (height, width))

    def to_dict(self) -> dict[str, Any]:
        """Image size and objects as JSON values; masks are COCO's run lengths."""
        found = []
        for index, (label, score, box) in enumerate(
            zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        ):
            mask = self.mask(index)
            segmentation = {} if mask is None else {"segmentation": run_lengths(mask)}
            found.append({"class": self.classes[label], "label": label, "score": score, "box": box, **segmentation})
        height, width = self.image.shape[1:]
        content = {"format_version": FORMAT_VERSION, "image": self.name, "width": width, "height": height}
        return {**content, "objects": found}

    def picture(self) -> UInt8[np.ndarray, "rows cols 3"]:
        """The image with boxes, class names, scores and masks."""
        labels = self.labels.tolist()
        captions = [
            f"{self.classes[label]} {score:.0%}" for label, score in zip(labels, self.scores.tolist(), strict=True)
        ]
        return draw_objects(self.image, self.boxes, labels, captions, self.mask)

    def save(self, directory: Path, stem: str, *, force: bool = False) -> list[Path]:
        """Writes STEM.objects.png and STEM.json; returns their paths.

        Raises `InputError` if one of them exists and `force` is not given, `DiskError` if one cannot be written.
        """
        directory = Path(directory)
        files = {f"{stem}.objects.png": encode_png(self.picture()), f"{stem}.json": json_bytes(self.to_dict())}
        refuse_overwrite(directory, files, force=force)
        return write_files(directory, files)


def detect(
    model: Detector,
    image: str | Path | bytes | UInt8[Tensor, "3 height width"],
    *,
    threshold: float = 0.5,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Detections:
    """The objects of at least `threshold` in an image of any size, given as a path, the bytes of a file, or pixels.

    A JPEG of more than `max_pixels` is read at a reduced size, with a warning. Raises `ImageError` for an unreadable
    image.
    """
    if isinstance(image, Tensor):
        pixels = image
    else:
        pixels = read_for_inference(image, name=name, max_pixels=max_pixels, verb="searched")
    name = name or (str(image) if isinstance(image, str | Path) else "image")
    check_sides([pixels], model.config.max_size, name=one_line(name))
    with eval_mode(model):
        (found,) = model.detect([pixels])
    kept = found["scores"] >= threshold
    return Detections(
        name=name,
        image=pixels,
        boxes=found["boxes"][kept],
        labels=found["labels"][kept],
        scores=found["scores"][kept],
        masks=found["masks"][kept] if "masks" in found else None,
        classes=model.classes or tuple(f"class {label}" for label in range(model.config.num_classes)),
    )
