"""Procedural scenes: shapes on low-information backgrounds, with per-pixel masks, made on the fly.

The label is the class of the largest object. What the registers of the paper are about, large plain areas
beside a few objects, is here by construction, at any size and in any number, without a download.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from mambar.data.dataset import Sample
from mambar.data.keys import key, numpy_generator
from mambar.data.synthetic.outlines import OUTLINES
from mambar.data.synthetic.scenes import (
    BACKGROUNDS,
    SceneObject,
    background,
    draw_clutter,
    draw_object,
    radius_for,
    random_index,
    uniform,
)
from mambar.errors import DataError

# Raised when the same configuration begins to give other pixels.
_DRAWING = 1
_COUNTS = {"train": 10_000, "val": 2_000}
_SIDES = (8, 4096)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Scenes numbered 0 … num_images-1; train and val never share one.

    `img_size` in pixels, (height, width) or a square's side; `objects` is the range of how many; `area` the
    range of the largest object's share of the image (of its inscribed square, when it is not one);
    `background` one of "plain", "gradient", "clouds", "grain", "mixed"; `clutter` 0 (none) to 1 (dozens of
    faint strokes). `num_images` None: 10,000 to train, 2,000 to evaluate. Labels are balanced.
    """

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
        if self.split not in _COUNTS:
            raise DataError(f"split={self.split!r} is unknown; shapes have train and val.")
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
        if self.background not in BACKGROUNDS:
            known = ", ".join(BACKGROUNDS)
            raise DataError(f"background={self.background!r} is unknown; use one of {known}.")
        if not 0 <= self.clutter <= 1:
            raise DataError(f"clutter={self.clutter} is out of range; use 0 to 1.")

    @property
    def name(self) -> str:
        """What to call it in logs and reports."""
        return "shapes"

    @property
    def classes(self) -> tuple[str, ...]:
        """The outlines' names."""
        return tuple(OUTLINES)[: self.num_classes]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)

    def __len__(self) -> int:
        return self.num_images or _COUNTS[self.split]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"shapes have {len(self)} images; there is no index {index}.")
        scene = key(self.seed, "shapes", self.split, index)
        height, width = self.size
        canvas = background(self.background, height, width, numpy_generator(key(scene, "background")))
        mask = np.zeros((height, width), dtype=np.uint8)
        draw_clutter(canvas, self.clutter, numpy_generator(key(scene, "clutter")))
        label = index % self.num_classes
        things = self._things(label, numpy_generator(key(scene, "layout")))
        # The largest thing comes last: it lies on top and is whole.
        for number, thing in reversed(list(enumerate(things))):
            fill = numpy_generator(key(scene, "fill", number))
            draw_object(canvas, mask, thing, self.classes[thing.label], fill)
        pixels = (np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
        return Sample(torch.from_numpy(pixels), label, torch.from_numpy(mask))

    def _things(self, label: int, generator: np.random.Generator) -> list[SceneObject]:
        height, width = (length / min(self.size) for length in self.size)
        share = uniform(*self.area, generator)
        things: list[SceneObject] = []
        for _ in range(self.objects[0] + random_index(self.objects[1] - self.objects[0] + 1, generator)):
            radius = radius_for(share, self.classes[label])
            row, col = 0.0, 0.0
            # Look for a free place; a crowded scene lets small things lie behind large ones.
            for _ in range(10):
                row = uniform(min(radius, 0.5), max(height - radius, height - 0.5), generator)
                col = uniform(min(radius, 0.5), max(width - radius, width - 0.5), generator)
                if all(math.hypot(row - t.row, col - t.col) > 0.9 * (radius + t.radius) for t in things):
                    break
            turn = uniform(0.0, 2 * math.pi, generator)
            things.append(SceneObject(label, row, col, radius, turn))
            label = random_index(self.num_classes, generator)
            share = uniform(0.2, 0.6, generator) * uniform(*self.area, generator)
            share = min(share, 0.6 * self._share(things[0]))
        return things

    def _share(self, thing: SceneObject) -> float:
        unit = radius_for(1.0, self.classes[thing.label])
        return (thing.radius / unit) ** 2

    def fingerprint(self) -> str:
        """sha256 of the configuration and of the drawing's version."""
        text = json.dumps({**asdict(self), "num_images": len(self), "drawing": _DRAWING}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
