"""Images of arrays: maps with a colormap, photographs and color bars."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from mambar.analysis.draw import html
from mambar.errors import InputError

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from PIL import Image

# Lightness increases monotonically, so that a grayscale print keeps the order of the values.
COLORMAPS: Final = ("inferno", "viridis", "cividis", "magma", "gray")
Resampling = Literal["nearest", "bicubic"]
# Width of a bicubic map in pixels, and the largest height.
_BICUBIC_WIDTH: Final = 448
_BICUBIC_HEIGHT: Final = 1344


@dataclass(frozen=True, kw_only=True)
class MapStyle:
    """Colormap and resampling of maps."""

    colormap: str = "viridis"
    resampling: Resampling = "nearest"


def color_scale(low: float, high: float, *, log: bool = False) -> "Normalize":
    """A linear or logarithmic scale of colors from `low` to `high`; values outside get the colors of the ends."""
    from matplotlib.colors import LogNorm, Normalize

    return LogNorm(low, high, clip=True) if log and low > 0 else Normalize(low, high, clip=True)


def apply_colormap(
    values: Float[np.ndarray, "rows cols"], scale: "Normalize", *, colormap: str = "viridis"
) -> UInt8[np.ndarray, "rows cols 3"]:
    """The colors of `values`; NaN and infinity are gray. The suffix "_r" of a colormap's name reverses it."""
    from matplotlib import colormaps

    if colormap.removesuffix("_r") not in COLORMAPS:
        raise InputError(f"colormap={colormap!r} is not supported; use one of {', '.join(COLORMAPS)}.")
    fractions = scale(np.ma.masked_invalid(values.astype(np.float64)))
    rgba = colormaps[colormap].with_extremes(bad="#808080")(fractions)
    return np.rint(rgba[..., :3] * 255).astype(np.uint8)


def map_html(
    values: Float[np.ndarray, "rows cols"], description: str, scale: "Normalize", style: MapStyle
) -> html.Html:
    """A map as an HTML image; a nearest map has one pixel per token and is enlarged by the browser."""
    rows, cols = values.shape
    if style.resampling == "bicubic":
        enlarged = min(_BICUBIC_WIDTH / cols, _BICUBIC_HEIGHT / rows)
        values = resized(values, (max(1, round(rows * enlarged)), max(1, round(cols * enlarged))))
    data = encode_png(apply_colormap(values, scale, colormap=style.colormap))
    return html.image(data, description=description, class_="nearest" if style.resampling == "nearest" else None)


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


def photograph_html(
    image: UInt8[np.ndarray, "channels height width"], description: str, *, max_size: int = 448
) -> html.Html:
    """An image as an HTML image; small images are shown without interpolation."""
    data, media_type = photograph(image, max_size=max_size)
    small = media_type == "image/png"
    return html.image(data, description=description, media_type=media_type, class_="nearest" if small else None)


def colorbar_png(colormap: str = "viridis") -> bytes:
    """A PNG of the color scale, low at the left."""
    ramp = np.linspace(0.0, 1.0, 256)[None, :]
    return encode_png(np.repeat(apply_colormap(ramp, color_scale(0, 1), colormap=colormap), 8, axis=0))


def encode_png(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A PNG file of the pixels, the same bytes for the same pixels."""
    from PIL import Image

    return _encoded(Image.fromarray(np.ascontiguousarray(pixels)), "PNG")


def to_uint8(image: Shaped[np.ndarray, "channels height width"]) -> UInt8[np.ndarray, "channels height width"]:
    """The image as uint8: other dtypes are scaled to the range 0-255."""
    if image.dtype == np.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    stretched = (image.astype(np.float64) - low) / (high - low if high > low else 1.0)
    return np.rint(stretched * 255).astype(np.uint8)


def label_font() -> Path:
    """The file of DejaVu Sans, which is part of matplotlib and has more alphabets than the font of Pillow."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def _encoded(picture: "Image.Image", kind: str) -> bytes:
    stream = io.BytesIO()
    options = {"optimize": True} if kind == "PNG" else {"quality": 88, "optimize": True}
    picture.save(stream, kind, **options)
    return stream.getvalue()
