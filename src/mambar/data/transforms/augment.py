"""Augmentation functions of pixels and a random generator.

Distributions and arithmetic are those of torchvision (crop, jitter), timm's "3a" policy (3-Augment of
DeiT III, arXiv 2204.07118) and timm's RandomErasing (arXiv 1708.04896, mode "const").
"""

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

_ATTEMPTS = 10
_SOLARIZE_FROM = 128
_BLUR_RADIUS = (0.1, 2.0)
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 1 / 0.3)


def random_resized_crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, rows, cols) of a random resized crop, as in torchvision.

    The fraction of the area is uniform in `scale`, log(cols / rows) is uniform in log `ratio`. After ten draws that do
    not fit, it is the largest center crop with an allowed ratio.
    """
    for _ in range(_ATTEMPTS):
        area = height * width * generator.uniform(*scale)
        shape = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        rows, cols = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < cols <= width:
            top = int(generator.integers(height - rows + 1))
            return top, int(generator.integers(width - cols + 1)), rows, cols
    rows, cols = height, width
    if width / height < ratio[0]:
        rows = round(width / ratio[0])
    elif width / height > ratio[1]:
        cols = round(height * ratio[1])
    return (height - rows) // 2, (width - cols) // 2, rows, cols


def shift_and_flip(
    image: UInt8[Tensor, "channels height width"], down: int, right: int, *, flipped: bool
) -> UInt8[Tensor, "channels height width"]:
    """A copy shifted up by `down` rows and left by `right` columns with zero padding, then mirrored if `flipped`.

    numpy, because torch's pad, slice and flip took three times as long for images of 32 pixels.
    """
    source = image.numpy()
    moved = np.zeros_like(source, order="C")
    _, height, width = source.shape
    # Position of the visible part of the image in the result.
    rows = slice(max(-down, 0), min(height, height - down))
    cols = slice(max(-right, 0), min(width, width - right))
    part = source[:, rows.start + down : rows.stop + down, cols.start + right : cols.stop + right]
    if rows.start < rows.stop and cols.start < cols.stop:
        if flipped:
            moved[:, rows, width - cols.stop : width - cols.start] = part[:, :, ::-1]
        else:
            moved[:, rows, cols] = part
    return torch.from_numpy(moved)


def three_augment(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Gray, solarized (values from 128 inverted) or blurred (radius 0.1-2 pixels), each with probability 1/3."""
    choice = int(generator.integers(3))
    if choice == 0:
        return image.convert("L").convert(image.mode)
    if choice == 1:
        return ImageOps.solarize(image, _SOLARIZE_FROM)
    return image.filter(ImageFilter.GaussianBlur(radius=generator.uniform(*_BLUR_RADIUS)))


def color_jitter(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation in random order, with factors uniform in 1 ± strength."""
    factors = generator.uniform(max(0.0, 1.0 - strength), 1.0 + strength, size=3)
    for step in np.argsort(generator.random(3)):
        enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[step]
        image = enhancer(image).enhance(float(factors[step]))
    return image


def random_erasing(
    image: Float[Tensor, "channels height width"], generator: np.random.Generator
) -> Float[Tensor, "channels height width"]:
    """A copy of a normalized image with a rectangle (2-33 % of the area, ratio 0.3-3.3) set to 0, the mean color."""
    height, width = image.shape[1:]
    for _ in range(_ATTEMPTS):
        area = height * width * generator.uniform(*_ERASED_AREA)
        shape = math.exp(generator.uniform(math.log(_ERASED_RATIO[0]), math.log(_ERASED_RATIO[1])))
        rows, cols = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if rows < height and cols < width:
            top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - cols + 1))
            image = image.clone()
            image[:, top : top + rows, left : left + cols] = 0.0
            return image
    return image
