"""Mosaics of photographed textures with exact masks: brick, grass and gravel, without a download.

The cells of a random power diagram are filled with patches of scikit-image's three 512-pixel textures. Each patch has a
random position, rotation and brightness, so that only its pattern identifies the class. Training and validation use
parts of the photographs that do not overlap.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import torch

from mambar.data.dataset import Sample, check_split, sha256_of
from mambar.data.keys import key, numpy_generator
from mambar.errors import DataError

CLASSES: Final = ("brick", "grass", "gravel")
# Increased if a change of the code gives different pixels for the same fields.
_DRAWING_VERSION: Final = 1
_COUNTS: Final = {"train": 2_000, "val": 200}
# Rows of the photographs that each split uses, with a gap between them.
_ROWS: Final = {"train": slice(0, 320), "val": slice(336, 512)}


@dataclass(frozen=True, kw_only=True)
class Mosaics:
    """Mosaics that are generated on access.

    Attributes:
        split: "train" or "val".
        img_size: Side of the square image in pixels, at most 120, so that a rotated validation patch fits.
        num_images: Number of images; None for 2,000 in "train" and 200 in "val".
        cells: Range of the number of cells.
        seed: Seed of all images.
    """

    # Not fields: they have no annotation.
    name = "mosaics"
    classes = CLASSES
    palette = ((178, 70, 52), (88, 150, 60), (130, 130, 138))

    split: str = "train"
    img_size: int = 96
    num_images: int | None = None
    cells: tuple[int, int] = (3, 8)
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", tuple(self.cells))
        check_split(self.split, "mosaics")
        if not 8 <= self.img_size <= 120:
            raise DataError(f"img_size={self.img_size} is out of range; mosaics take 8 to 120 pixels.")
        if self.num_images is not None and self.num_images < 1:
            raise DataError(f"num_images={self.num_images} is not a count; use 1 or more.")
        if not 1 <= self.cells[0] <= self.cells[1] <= 100:
            raise DataError(f"cells={self.cells} is not a range; use 1 <= least <= most <= 100.")

    def __len__(self) -> int:
        return self.num_images or _COUNTS[self.split]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"mosaics have {len(self)} images; there is no index {index}.")
        generator = numpy_generator(key(self.seed, "mosaic", self.split, index))
        side, (least, most) = self.img_size, self.cells
        count = least + int(generator.integers(most - least + 1))
        centers = generator.random((count, 2)) * side
        # Weights of the power diagram give the cells different sizes.
        weights = generator.random(count) * (side / 6) ** 2
        labels = generator.integers(len(CLASSES), size=count)
        rows, cols = np.mgrid[:side, :side] + 0.5
        distance = (rows - centers[:, 0, None, None]) ** 2 + (cols - centers[:, 1, None, None]) ** 2
        cell = (distance - weights[:, None, None]).argmin(0)
        canvas = np.zeros((side, side), dtype=np.float64)
        for number, label in enumerate(labels.tolist()):
            patch = self._patch(label, generator)
            canvas[cell == number] = patch[cell == number]
        pixels = torch.from_numpy(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))
        mask = torch.from_numpy(labels.astype(np.uint8)[cell])
        return Sample(pixels.expand(3, -1, -1), 0, mask)

    def fingerprint(self) -> str:
        """sha256 of the fields and of the photographs."""
        return sha256_of(json.dumps({"drawing": _DRAWING_VERSION, "num": len(self), **asdict(self)}), *_photographs())

    def _patch(self, label: int, generator: np.random.Generator) -> np.ndarray:
        """A rotated piece of a texture with random mean and contrast."""
        photograph = _photographs()[label][_ROWS[self.split]].astype(np.float64)
        side = self.img_size
        # Nearest neighbors: interpolation artifacts would reveal the angle.
        angle = generator.random() * 2 * np.pi
        reach = side / np.sqrt(2)
        space = np.array(photograph.shape) - 2 * reach - 1
        middle = reach + generator.random(2) * space
        rows, cols = np.mgrid[:side, :side] - (side - 1) / 2
        down = middle[0] + np.cos(angle) * rows - np.sin(angle) * cols
        right = middle[1] + np.sin(angle) * rows + np.cos(angle) * cols
        patch = photograph[np.rint(down).astype(int), np.rint(right).astype(int)]
        spread = patch.std() + 1e-6
        return 100 + 56 * generator.random() + (patch - patch.mean()) / spread * (30 + 20 * generator.random())


@cache
def _photographs() -> tuple[np.ndarray, ...]:
    from skimage import data

    loaders: Any = data
    return tuple(np.asarray(getattr(loaders, name)(), dtype=np.uint8) for name in CLASSES)
