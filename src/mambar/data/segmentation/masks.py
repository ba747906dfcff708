"""Masks: a table per dataset maps stored values or colors to a label for every pixel.

Labels are 0 … K-1 in the order of the class names; `IGNORE` marks pixels that are excluded from loss and metrics. An
unknown value raises an ImageError with the value, the file and what to do.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import UInt8, UInt16

from mambar.errors import DataError, ImageError
from mambar.image_file import MAX_PIXELS, checked_image
from mambar.messages import one_line

# Excluded from loss and metrics; hence at most 255 classes.
IGNORE = 255
MAX_CLASSES = 255

Color = tuple[int, int, int]
StoredMask = (
    UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"] | UInt8[np.ndarray, "height width 3"]
)


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Maps the stored values of masks to labels.

    Attributes:
        classes: The name of each label.
        values: Stored number → label, for masks of numbers.
        colors: Stored color → label, for masks of colors.
        palette: A display color for each class; generated if empty.
        hint: End of the error message about an unknown value.
    """

    classes: tuple[str, ...]
    values: Mapping[int, int] = field(default_factory=dict)
    colors: Mapping[Color, int] = field(default_factory=dict)
    palette: tuple[Color, ...] = ()
    hint: str = "correct the mask, or list the value"

    def __post_init__(self) -> None:
        if not self.classes:
            raise DataError("a segmentation dataset needs at least one class; got none.")
        if len(self.classes) > MAX_CLASSES:
            raise DataError(f"{len(self.classes)} classes are too many; at most {MAX_CLASSES} are supported.")
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise DataError(f"the class name {one_line(twice)!r} appears twice; give every class its own name.")
        if not self.palette:
            object.__setattr__(self, "palette", palette(len(self.classes)))

    def labels(self, stored: StoredMask, *, name: str) -> UInt8[np.ndarray, "height width"]:
        """The label of every pixel; ImageError for a value or color that is not in the table."""
        if stored.ndim == 3:
            return self._of_colors(stored, name)
        if not self.values:
            raise ImageError(f"{one_line(name)} holds numbers, but the classes have only colors; {self.hint}.")
        found = self._by_value[stored]
        if found.min(initial=0) < 0:
            value = int(stored[found < 0].flat[0])
            known = _ranges(self.values)
            raise ImageError(f"{one_line(name)} holds the value {value}; known are {known}: {self.hint}.")
        return found.astype(np.uint8)

    def _of_colors(self, stored: np.ndarray, name: str) -> UInt8[np.ndarray, "height width"]:
        if not self.colors:
            gray = (stored[..., 0] == stored[..., 1]).all() and (stored[..., 0] == stored[..., 2]).all()
            if gray and self.values:
                return self.labels(np.ascontiguousarray(stored[..., 0]), name=name)
            raise ImageError(f"{one_line(name)} holds colors, but the classes have none; {self.hint}.")
        codes, labels = self._by_code
        wanted = color_codes(stored)
        place = np.searchsorted(codes, wanted).clip(max=len(codes) - 1)
        unknown = codes[place] != wanted
        if unknown.any():
            red, green, blue = stored[unknown][0].tolist()
            raise ImageError(
                f"{one_line(name)} holds the color #{red:02x}{green:02x}{blue:02x}, which no class has; {self.hint}."
            )
        return labels[place]

    @cached_property
    def _by_value(self) -> np.ndarray:
        table = np.full(1 << 16, -1, dtype=np.int16)
        for value, label in self.values.items():
            table[value] = label
        return table

    @cached_property
    def _by_code(self) -> tuple[np.ndarray, np.ndarray]:
        coded = sorted(((r << 16) | (g << 8) | b, label) for (r, g, b), label in self.colors.items())
        codes, labels = zip(*coded, strict=True)
        return np.array(codes, dtype=np.uint32), np.array(labels, dtype=np.uint8)


def read_mask(data: bytes, *, name: str, colors: bool = False, max_pixels: int = MAX_PIXELS) -> StoredMask:
    """The numbers (height, width) or colors (height, width, 3) that a PNG holds.

    Palette images give their indices, or their colors with `colors`. 16-bit gray keeps its 16 bits, and transparency is
    ignored. Raises ImageError for every other file: JPEG compression changes labels.
    """
    advice = " Save masks as PNG without smoothing."
    with checked_image(data, name=name, formats=("PNG",), max_pixels=max_pixels, advice=advice) as image:
        image.load()
        if image.mode.startswith("I"):
            return np.asarray(image).astype(np.uint16)
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if image.mode in ("L", "LA", "La"):
            return np.asarray(image.getchannel(0))
        if image.mode == "P" and not colors:
            return np.asarray(image)
        return np.asarray(image.convert("RGB"))


def color_codes(stored: UInt8[np.ndarray, "*place 3"]) -> np.ndarray:
    """Each color as one number, 0xRRGGBB."""
    wide = stored.astype(np.uint32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def palette(count: int) -> tuple[Color, ...]:
    """`count` distinguishable colors: hues a golden angle apart, in three steps of value and saturation.

    A longer palette begins with the colors of a shorter one.
    """
    colors: list[Color] = []
    for index in range(count):
        hue = (0.58 + index * 0.6180339887) % 1.0
        value = (0.90, 0.62, 0.98)[index % 3]
        saturation = (0.78, 0.85, 0.48)[(index // 3) % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)


def _ranges(values: Sequence[int] | Mapping[int, int]) -> str:
    """Sorted numbers as ranges: 0-150, 255."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs[:8])
