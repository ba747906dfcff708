"""Opens untrusted image files with Pillow, and crops images for evaluation; needs no torch.

Only PNG, JPEG (also MPO) and WEBP are opened, whatever the file name. The size in the header is checked before
decoding, so that a decompression bomb allocates no memory; a JPEG of too many pixels is reduced while it is decoded.
Every failure is an ImageError with a message of one line.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from mambar.errors import ImageError
from mambar.messages import one_line

FORMATS = ("PNG", "JPEG", "WEBP")
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"})
IMAGE_SUFFIXES = frozenset({".png", ".webp", *JPEG_SUFFIXES})
# A 40-megapixel photograph needs about 280 MB while it is read.
MAX_PIXELS = 40_000_000
# Pillow opens nothing larger.
LARGEST_MAX_PIXELS = 178_000_000
# The decoder of a progressive JPEG keeps the coefficients of the full size, up to 6 bytes for each pixel.
_PROGRESSIVE_FACTOR = 3
MAX_BYTES = 256_000_000
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_ORIENTATION = 0x0112
# EXIF orientation -> what turns the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(
    source: Path | str | bytes,
    *,
    name: str | None = None,
    apply_exif_orientation: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """The RGB image of a file or of its bytes; see `mambar.data.read_image`.

    `info["full_size"]` of a JPEG that was reduced is the (width, height) of the file.
    """
    if isinstance(source, bytes):
        name, data = name or "image", source
    else:
        name, data = name or str(source), file_bytes(Path(source).expanduser())
    with checked_image(data, name=name, max_pixels=max_pixels) as image:
        image.load()
        return upright_rgb(image) if apply_exif_orientation else _rgb(image)


@contextmanager
def checked_image(
    data: bytes, *, name: str, formats: tuple[str, ...] = FORMATS, max_pixels: int = MAX_PIXELS, advice: str = ""
) -> Iterator[Image.Image]:
    """A context with the opened image; an error inside is raised as an ImageError that ends with `advice`."""
    if not data:
        raise ImageError(f"{one_line(name)} cannot be read: it is empty (0 bytes); replace or remove it.")
    with warnings.catch_warnings():
        # Pillow warns about properties that are checked here.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=formats) as image:
                _check_header(image, name, max_pixels)
                yield image
        except (ImageError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{one_line(name)} has more than {LARGEST_MAX_PIXELS} pixels, the limit of Pillow: make it smaller."
            ) from error
        # A damaged file raises OSError, ValueError, SyntaxError, struct.error, … depending on the format.
        except Exception as error:
            kinds = ", ".join(formats[:-1]) + " or " * (len(formats) > 1) + formats[-1]
            raise ImageError(f"{one_line(name)} cannot be read as a {kinds}: {_reason(error)}.{advice}") from error


def file_bytes(path: Path) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`."""
    name = one_line(str(path))
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory, not a regular file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{name} is {kind}; give the path of a PNG, JPEG or WEBP file.")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{name} has {status.st_size} bytes; at most {MAX_BYTES} are read.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        # Not Path.is_symlink, which raises again for an impossible name.
        broken = os.path.islink(path)  # noqa: PTH114
        reason = "is a link to nothing" if broken else f"cannot be opened: {_reason(error)}"
        raise ImageError(f"{name} {reason}; check the path.") from error


def scaled_size(height: int, width: int, size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """(height, width) to which an image is scaled before a crop of `size` (height, width)."""
    rows, cols = (int(side / crop_pct) for side in size)
    if rows == cols:
        # As torchvision for a square: the long side is rounded down.
        if height < width:
            return rows, int(rows * width / height)
        return int(rows * height / width), rows
    factor = max(rows / height, cols / width)
    return max(round(height * factor), rows), max(round(width * factor), cols)


def evaluation_crop(image: Image.Image, size: tuple[int, int], *, crop_pct: float, interpolation: str) -> Image.Image:
    """The center crop of `size` (height, width) of the scaled image, as in the evaluation of timm and DeiT."""
    height, width = size
    rows, cols = scaled_size(image.height, image.width, size, crop_pct)
    if not (rows, cols) == size == (image.height, image.width):
        image = image.resize((cols, rows), INTERPOLATIONS[interpolation])
        top, left = round((rows - height) / 2), round((cols - width) / 2)
        image = image.crop((left, top, left + width, top + height))
    return image


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    if isinstance(image, JpegImageFile):
        _reduce(image, max_pixels)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{one_line(name)} has {width}x{height} pixels; at most {max_pixels} are decoded: make it smaller, or "
            "give --max-pixels (max_pixels=) a larger number."
        )
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise ImageError(f"{one_line(name)} is animated; save one frame as a still image.")


def _reduce(image: JpegImageFile, max_pixels: int) -> None:
    """Lets the decoder scale by 1/2, 1/4 or 1/8, if that brings the image below `max_pixels`."""
    width, height = image.size
    if "progressive" in image.info and width * height > _PROGRESSIVE_FACTOR * max_pixels:
        return
    fitting = (factor for factor in (1, 2, 4, 8) if -(-width // factor) * -(-height // factor) <= max_pixels)
    factor = next(fitting, 1)
    if factor > 1:
        image.draft(None, (max(width // factor, 1), max(height // factor, 1)))  # type: ignore[arg-type]
        image.info["full_size"] = width, height


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit gray: Pillow's own conversion would clip instead of scale.
        high_byte = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, rotated by its EXIF orientation; see `mambar.data.read_image` for other modes."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    # The pixels can be valid although EXIF is damaged.
    except Exception:
        orientation = 1
    picture = _rgb(image)
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is of another kind, or damaged"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(text, limit=100).rstrip(".")
