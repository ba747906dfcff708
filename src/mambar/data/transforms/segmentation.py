"""Augmentation of an image with its mask as one uint8 tensor: red, green, blue and label.

Geometric transforms thus act on both, and loaders need no support for masks. The augmentations are those of the
published ADE20K training (mmsegmentation): scale, crop with a limit on the largest class, flip, photometric distortion.
Images are scaled with Pillow's bilinear filter, anti-aliased when shrinking (unlike OpenCV in mmsegmentation); labels
use nearest.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mambar.data.dataset import ImageDataset, Sample
from mambar.data.keys import numpy_generator
from mambar.data.segmentation.masks import IGNORE, Color, palette
from mambar.data.transforms.classification import pil_to_tensor, to_pil_image
from mambar.errors import DataError, RecipeError
from mambar.json_fields import Allowed, check_allowed

_CROPS_TRIED = 10
_ALLOWED: Allowed = (
    ("two factors above 0, at most 20, in rising order", lambda pair: 0 < pair[0] <= pair[1] <= 20, ("ratio",)),
    ("a fraction above 0, at most 1", lambda value: 0 < value <= 1, ("max_class_fraction",)),
    ("a probability, 0 to 1", lambda value: 0 <= value <= 1, ("hflip",)),
    ("1 pixel or more", lambda size: min(size if isinstance(size, tuple) else (size,)) >= 1, ("img_size",)),
)
# Ranges of mmsegmentation's PhotoMetricDistortion; a hue of 180 OpenCV steps is Pillow's 256.
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18 * 256 / 180


class MaskChannelDataset:
    """A segmentation dataset whose masks are the fourth channel of the images."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset, self.name, self.classes = dataset, dataset.name, dataset.classes
        self.palette: tuple[Color, ...] = getattr(dataset, "palette", ()) or palette(len(self.classes))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        if sample.mask is None:
            raise DataError(f"sample {index} of {self.name} has no mask; segmentation needs a mask for every image.")
        return replace(sample, image=torch.cat([sample.image, sample.mask[None]]), mask=None)

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()


@dataclass(frozen=True, kw_only=True)
class SegmentationTransform:
    """Training augmentation of an image with its mask; every draw is derived from the key.

    Attributes:
        img_size: Crop size in pixels, (height, width) or a square's side; smaller images are padded right and below.
        resize: (long, short) side that an image is scaled to before `ratio` acts; None keeps its size.
        ratio: Range of the random scale factor.
        max_class_fraction: A crop in which one class fills more of the labeled pixels is drawn again, up to ten times.
        hflip: Probability of a horizontal flip.
        distort: Random brightness, contrast, saturation and hue, each with probability one half.
        fill: RGB value of padded pixels; their label is `IGNORE`.
    """

    img_size: int | tuple[int, int] = 512
    resize: tuple[int, int] | None = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    max_class_fraction: float = 0.75
    hflip: float = 0.5
    distort: bool = True
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self) -> None:
        check_allowed(self, _ALLOWED, error=RecipeError)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a crop."""
        return self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)

    def __call__(self, stacked: UInt8[Tensor, "4 height width"], key: int) -> UInt8[Tensor, "4 rows cols"]:
        generator = numpy_generator(key)
        stacked = self._scaled(stacked, generator)
        stacked = self._cropped(stacked, generator)
        if generator.random() < self.hflip:
            stacked = stacked.flip(-1)
        if self.distort:
            image = pil_to_tensor(photometric_distortion(to_pil_image(stacked[:3]), generator))
            stacked = torch.cat([image, stacked[3:]])
        return stacked.contiguous()

    def _scaled(self, stacked: Tensor, generator: np.random.Generator) -> Tensor:
        height, width = stacked.shape[1:]
        factor = generator.uniform(*self.ratio)
        if self.resize is not None:
            factor *= min(max(self.resize) / max(height, width), min(self.resize) / min(height, width))
        size = max(round(height * factor), 1), max(round(width * factor), 1)
        if size == (height, width):
            return stacked
        image = to_pil_image(stacked[:3]).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        labels = to_pil_image(stacked[3:]).resize((size[1], size[0]), Image.Resampling.NEAREST)
        return torch.cat([pil_to_tensor(image), pil_to_tensor(labels)])

    def _cropped(self, stacked: Tensor, generator: np.random.Generator) -> Tensor:
        rows, cols = self.size
        height, width = stacked.shape[1:]
        piece = stacked
        for _ in range(_CROPS_TRIED):
            top = int(generator.integers(max(height - rows, 0) + 1))
            left = int(generator.integers(max(width - cols, 0) + 1))
            piece = stacked[:, top : top + rows, left : left + cols]
            if self.max_class_fraction >= 1 or largest_class_fraction(piece[3]) < self.max_class_fraction:
                break
        if tuple(piece.shape[1:]) == (rows, cols):
            return piece
        filled = torch.tensor([*self.fill, IGNORE], dtype=torch.uint8)[:, None, None].repeat(1, rows, cols)
        filled[:, : piece.shape[1], : piece.shape[2]] = piece
        return filled


def largest_class_fraction(labels: UInt8[Tensor, "height width"]) -> float:
    """The most frequent class's fraction of the labeled pixels; 1 if there is at most one class."""
    counts = torch.bincount(labels.flatten(), minlength=IGNORE + 1)[:IGNORE]
    several = int((counts > 0).sum()) > 1
    return float(counts.max()) / float(counts.sum()) if several else 1.0


def photometric_distortion(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Brightness, contrast (before or after color), saturation and hue, each with probability one half."""
    draws = generator.random(5)
    amounts = generator.uniform(-1, 1, size=4)
    steps = np.arange(256, dtype=np.float64)
    if draws[0] < 0.5:
        image = image.point(_table(steps + amounts[0] * _BRIGHTNESS) * 3)
    contrast = _table(steps * _between(_CONTRAST, amounts[1])) * 3 if draws[1] < 0.5 else None
    contrast_first = draws[2] < 0.5
    if contrast and contrast_first:
        image = image.point(contrast)
    keep = [int(step) for step in steps]
    saturation = _table(steps * _between(_SATURATION, amounts[2])) if draws[3] < 0.5 else keep
    hue = [int(step) for step in (steps + round(amounts[3] * _HUE)) % 256] if draws[4] < 0.5 else keep
    if saturation is not keep or hue is not keep:
        image = image.convert("HSV").point([*hue, *saturation, *keep]).convert("RGB")
    if contrast and not contrast_first:
        image = image.point(contrast)
    return image


def _between(bounds: tuple[float, float], amount: float) -> float:
    """Maps `amount` from [-1, 1] to the bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * (amount + 1) / 2


def _table(values: np.ndarray) -> list[int]:
    return [int(value) for value in np.clip(np.rint(values), 0, 255)]
