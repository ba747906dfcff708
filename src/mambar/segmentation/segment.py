"""Segments one image with a trained model: labels, confidence, class areas and output files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from mambar.atomic_files import write_files
from mambar.data.loading.images import read_for_inference
from mambar.data.segmentation.masks import Color, palette
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.hub.config_file import json_bytes
from mambar.hub.files import refuse_overwrite
from mambar.image_file import MAX_PIXELS
from mambar.nn.eval_mode import eval_mode
from mambar.segmentation.inference import Inference, predict
from mambar.segmentation.overlays import MAX_SIDE, add_legend, draw_overlay, index_png
from mambar.segmentation.segmenter import Segmenter

# 1: version 0.1, with the keys colour, share and certainty.
FORMAT_VERSION: Final = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """An image and its predicted segmentation.

    Attributes:
        name: file name, or the argument `name` of `segment`.
        image: the image.
        labels: predicted class index of each pixel.
        confidence: probability (0-1) of the predicted class at each pixel.
        classes: class names, in label order.
        palette: color of each class.
    """

    name: str
    image: UInt8[np.ndarray, "3 height width"]
    labels: UInt8[np.ndarray, "height width"]
    confidence: Float32[np.ndarray, "height width"]
    classes: tuple[str, ...]
    palette: tuple[Color, ...]

    @property
    def areas(self) -> dict[str, float]:
        """The fraction of the image (0-1) that each predicted class covers, largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return {self.classes[label]: float(counts[label] / self.labels.size) for label in order if counts[label]}

    def to_dict(self) -> dict[str, Any]:
        """Image size, and for each predicted class its label, color, area and mean confidence, as JSON values."""
        found = []
        for name, fraction in self.areas.items():
            label = self.classes.index(name)
            inside = self.labels == label
            found.append(
                {
                    "class": name,
                    "label": label,
                    "color": f"#{bytes(self.palette[label]).hex()}",
                    "pixels": int(inside.sum()),
                    "fraction": fraction,
                    "confidence": float(self.confidence[inside].mean()),
                }
            )
        height, width = self.labels.shape
        return {
            "format_version": FORMAT_VERSION,
            "image": self.name,
            "width": width,
            "height": height,
            "classes": found,
        }

    def overlay(self) -> UInt8[np.ndarray, "rows cols 3"]:
        """The image with the class colors drawn over it; of every n-th row and column, so that no side exceeds 8192."""
        step = -(-max(self.labels.shape) // MAX_SIDE)
        return draw_overlay(self.image[:, ::step, ::step], self.labels[::step, ::step], self.palette)

    def legend(self) -> list[tuple[str, Color, float]]:
        """(name, color, fraction of the image) of each predicted class, largest first."""
        return [(name, self.palette[self.classes.index(name)], share) for name, share in self.areas.items()]

    def save(self, directory: Path, stem: str, *, force: bool = False) -> list[Path]:
        """Writes STEM.overlay.png (with legend), STEM.index.png (values are labels) and STEM.json; returns their paths.

        Raises `InputError` if one of them exists and `force` is not given, `DiskError` if one cannot be written.
        """
        from mambar.analysis.draw.color_maps import encode_png

        directory = Path(directory)
        files = {
            f"{stem}.overlay.png": encode_png(add_legend(self.overlay(), self.legend())),
            f"{stem}.index.png": index_png(self.labels, self.palette),
            f"{stem}.json": json_bytes(self.to_dict()),
        }
        refuse_overwrite(directory, files, force=force)
        return write_files(directory, files)


def segment(
    model: Segmenter,
    image: str | Path | bytes | UInt8[Tensor, "3 height width"],
    *,
    inference: Inference | None = None,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Segmentation:
    """The predicted segmentation of an image of any size, given as a path, the bytes of a file, or pixels.

    inference: by default sliding windows of the training crop. A JPEG of more than `max_pixels` is segmented at a
    reduced size, with a warning. Raises `ImageError` for an unreadable image.
    """
    shown = name or (str(image) if isinstance(image, str | Path) else "image")
    if isinstance(image, Tensor):
        pixels = image
    else:
        pixels = read_for_inference(image, name=name, max_pixels=max_pixels, verb="segmented")
    preprocessing = model.preprocessing or Preprocessing()
    if inference is None:
        crop = max(preprocessing.size)
        inference = Inference(crop=crop, stride=max(crop * 2 // 3, 1))
    with eval_mode(model), torch.inference_mode():
        labels, confidence = predict(model, pixels, inference, preprocessing=preprocessing)
    names: Sequence[str] = model.classes or tuple(f"class {label}" for label in range(model.num_classes))
    return Segmentation(
        name=shown,
        image=pixels.numpy(),
        labels=labels.numpy(),
        confidence=confidence.float().numpy(),
        classes=tuple(names),
        palette=model.palette or palette(model.num_classes),
    )
