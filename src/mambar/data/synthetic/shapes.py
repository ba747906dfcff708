"""Procedural scenes: shapes on low-information backgrounds with per-pixel masks, generated on the fly.

The label is the class of the largest object. Large uniform areas beside a few objects, in which the paper finds
artifacts, are present by construction, at any size and in any number.
"""

import json
import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from mambar.data.dataset import Sample, check_split, sha256_of
from mambar.data.keys import key, numpy_generator
from mambar.data.synthetic import scenes
from mambar.data.synthetic.outlines import OUTLINES
from mambar.data.synthetic.scenes import SceneObject, radius_for, random_index, uniform
from mambar.errors import DataError

# Increased whenever equal fields give different pixels.
_DRAWING_VERSION = 1
_COUNTS = {"train": 10_000, "val": 2_000}
_SIDES = (8, 4096)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Scenes that are generated on access; labels are balanced, and no scene is in both splits.

    Attributes:
        split: "train" or "val".
        img_size: Size in pixels, (height, width) or a square's side.
        num_images: Number of images; None for 10,000 in "train" and 2,000 in "val".
        num_classes: Number of outlines, at most 10.
        objects: Range of the number of objects.
        area: Range of the largest object's fraction of the image, or of the largest centered square.
        background: "plain", "gradient", "clouds", "grain" or "mixed".
        clutter: Amount of faint strokes, from 0 (none) to 1 (up to 40).
        seed: Seed of all images.
    """

    # Not a field: it has no annotation.
    name = "shapes"

    split: str = "train"
    img_size: int | tuple[int, int] = 64
    num_images: int | None = None
    num_classes: int = 10
    objects: tuple[int, int] = (1, 3)
    area: tuple[float, float] = (0.06, 0.2)
    background: str = "mixed"
    clutter: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("img_size", "objects", "area"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        check_split(self.split, "shapes")
        if not _SIDES[0] <= min(self.size) <= max(self.size) <= _SIDES[1]:
            raise DataError(f"img_size={self.img_size} is out of range; use {_SIDES[0]} to {_SIDES[1]} pixels.")
        if self.num_images is not None and self.num_images < 1:
            raise DataError(f"num_images={self.num_images} is not a count; use 1 or more.")
        if not 1 <= self.num_classes <= len(OUTLINES):
            raise DataError(f"num_classes={self.num_classes} is out of range; use 1 to {len(OUTLINES)}.")
        if not 1 <= self.objects[0] <= self.objects[1] <= 100:
            raise DataError(f"objects={self.objects} is not a range; use 1 <= least <= most <= 100.")
        if not 0 < self.area[0] <= self.area[1] <= 0.25:
            raise DataError(f"area={self.area} is not a range; use 0 < least <= most <= 0.25 of the image.")
        if self.background not in scenes.BACKGROUNDS:
            raise DataError(f"background={self.background!r} is unknown; use one of {', '.join(scenes.BACKGROUNDS)}.")
        if not 0 <= self.clutter <= 1:
            raise DataError(f"clutter={self.clutter} is out of range; use 0 to 1.")

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(OUTLINES)[: self.num_classes]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)

    def __len__(self) -> int:
        return self.num_images or _COUNTS[self.split]

    def __getitem__(self, index: int) -> Sample:
        pixels, instances, labels = self.draw(index)
        values = np.array([0, *(label + 1 for label in labels)], dtype=np.uint8)
        return Sample(torch.from_numpy(pixels), labels[0], torch.from_numpy(values[instances]))

    def draw(
        self, index: int
    ) -> tuple[UInt8[np.ndarray, "3 height width"], UInt8[np.ndarray, "height width"], list[int]]:
        """The image, the number from 1 of the object at each pixel (0: none), and the class of each object."""
        if not 0 <= index < len(self):
            raise IndexError(f"shapes have {len(self)} images; there is no index {index}.")
        scene = key(self.seed, "shapes", self.split, index)
        height, width = self.size
        canvas = scenes.background(self.background, height, width, numpy_generator(key(scene, "background")))
        instances = np.zeros((height, width), dtype=np.uint8)
        scenes.draw_clutter(canvas, self.clutter, numpy_generator(key(scene, "clutter")))
        items = self._layout(index % self.num_classes, numpy_generator(key(scene, "layout")))
        # The largest object is drawn last, so that nothing covers it.
        for number, item in reversed(list(enumerate(items))):
            fill = numpy_generator(key(scene, "fill", number))
            scenes.draw_object(canvas, instances, item, self.classes[item.label], fill, value=number + 1)
        pixels = (np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
        return pixels, instances, [item.label for item in items]

    def _layout(self, label: int, generator: np.random.Generator) -> list[SceneObject]:
        height, width = (length / min(self.size) for length in self.size)
        share = uniform(*self.area, generator)
        items: list[SceneObject] = []
        for _ in range(self.objects[0] + random_index(self.objects[1] - self.objects[0] + 1, generator)):
            radius = radius_for(share, self.classes[label])
            row, col = 0.0, 0.0
            # Look for a free place; in a crowded scene larger objects cover smaller ones.
            for _ in range(10):
                row = uniform(min(radius, 0.5), max(height - radius, height - 0.5), generator)
                col = uniform(min(radius, 0.5), max(width - radius, width - 0.5), generator)
                if all(math.hypot(row - t.row, col - t.col) > 0.9 * (radius + t.radius) for t in items):
                    break
            turn = uniform(0.0, 2 * math.pi, generator)
            items.append(SceneObject(label, row, col, radius, turn))
            label = random_index(self.num_classes, generator)
            share = uniform(0.2, 0.6, generator) * uniform(*self.area, generator)
            share = min(share, 0.6 * self._share(items[0]))
        return items

    def _share(self, item: SceneObject) -> float:
        unit = radius_for(1.0, self.classes[item.label])
        return (item.radius / unit) ** 2

    def fingerprint(self) -> str:
        """sha256 of the fields and of the drawing version."""
        return sha256_of(
            json.dumps({**asdict(self), "num_images": len(self), "drawing": _DRAWING_VERSION}, sort_keys=True)
        )
