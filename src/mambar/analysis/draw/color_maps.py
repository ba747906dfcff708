"""Arrays into pictures: a map of numbers under a colour scale, a photograph, a colour bar."""

import io
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from mambar.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

# Lightness rises evenly from dark to bright in both, so that a print in grey keeps the order of the values.
COLORMAPS: Final = ("inferno", "viridis", "cividis", "magma", "gray")
Resampling = Literal["nearest", "bicubic"]


def apply_colormap(
    values: Float[np.ndarray, "rows cols"], *, low: float, high: float, colormap: str = "viridis"
) -> UInt8[np.ndarray, "rows cols 3"]:
    """The colors of `values` on a linear scale from `low` to `high`; what is not finite is grey."""
    from matplotlib import colormaps

    if colormap not in COLORMAPS:
        raise InputError(f"colormap={colormap!r} is not a scale of even lightness; use one of {', '.join(COLORMAPS)}.")
    span = high - low if high > low else 1.0
    finite = np.isfinite(values)
    fractions = np.clip((np.where(finite, values, low).astype(np.float64) - low) / span, 0.0, 1.0)
    rgb = np.rint(colormaps[colormap](fractions)[..., :3] * 255).astype(np.uint8)
    rgb[~finite] = 128
    return rgb


def map_png(
    values: Float[np.ndarray, "rows cols"],
    *,
    low: float,
    high: float,
    colormap: str = "viridis",
    resampling: Resampling = "nearest",
    width: int = 448,
) -> bytes:
    """A PNG of a map. Nearest keeps one pixel a token (the page enlarges it); bicubic is `width` wide."""
    if resampling == "nearest":
        return png(apply_colormap(values, low=low, high=high, colormap=colormap))
    height = max(1, round(width * values.shape[0] / values.shape[1]))
    smooth = resized(values, (height, width))
    return png(apply_colormap(smooth, low=low, high=high, colormap=colormap))


def resized(values: Float[np.ndarray, "rows cols"], size: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """`values` at `size` (height, width), bicubic, kept within the range of the values."""
    from PIL import Image

    picture = Image.fromarray(np.nan_to_num(values.astype(np.float32)))
    bicubic = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return np.clip(bicubic, float(np.nanmin(values)), float(np.nanmax(values)))


def photograph(image: UInt8[np.ndarray, "channels height width"], *, max_size: int = 448) -> tuple[bytes, str]:
    """An image as (bytes, media type): PNG where small, else JPEG of at most `max_size` pixels a side."""
    from PIL import Image

    channels = image.shape[0]
    pixels = np.moveaxis(image, 0, -1) if channels >= 3 else np.repeat(image[0][..., None], 3, axis=-1)
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    largest = max(picture.size)
    if largest <= 96:
        return _encoded(picture, "PNG"), "image/png"
    if largest > max_size:
        size = tuple(max(1, round(side * max_size / largest)) for side in picture.size)
        picture = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return _encoded(picture, "JPEG"), "image/jpeg"


def colorbar_png(colormap: str = "viridis") -> bytes:
    """A PNG of the colour scale, low at the left."""
    ramp = np.linspace(0.0, 1.0, 256)[None, :]
    return png(np.repeat(apply_colormap(ramp, low=0.0, high=1.0, colormap=colormap), 8, axis=0))


def png(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A PNG file of the pixels, the same bytes for the same pixels."""
    from PIL import Image

    return _encoded(Image.fromarray(np.ascontiguousarray(pixels)), "PNG")


def to_uint8(
    image: Shaped[np.ndarray, "channels height width"],
) -> UInt8[np.ndarray, "channels height width"]:
    """An image for showing: bytes as they are, other numbers stretched to the range 0-255."""
    if image.dtype == np.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    stretched = (image.astype(np.float64) - low) / (high - low if high > low else 1.0)
    return np.rint(stretched * 255).astype(np.uint8)


def _encoded(picture: "Image.Image", kind: str) -> bytes:
    stream = io.BytesIO()
    options = {"optimize": True} if kind == "PNG" else {"quality": 88, "optimize": True}
    picture.save(stream, kind, **options)
    return stream.getvalue()
