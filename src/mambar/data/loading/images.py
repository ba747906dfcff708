"""Decodes one image from a path or from bytes, and rejects unsafe files before decoding.

Only PNG, JPEG and WEBP are opened, whatever the file name. The size in the header is checked before decoding, so that
a decompression bomb allocates no memory. Every failure is an ImageError with a message of one line.

Pillow decodes, as for the published results. torchvision's decoder gave the same pixels in the same time (0.72 and
0.74 ms for a 500x375 JPEG on one core), and terminated the process on nearly every damaged PNG.
"""

import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mambar.deprecated import accept_old_names
from mambar.errors import ImageError
from mambar.messages import one_line

FORMATS = ("PNG", "JPEG", "WEBP")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp"})
# A 40-megapixel photograph needs about 280 MB while it is read.
MAX_PIXELS = 40_000_000
MAX_BYTES = 256_000_000

_ORIENTATION = 0x0112
# EXIF orientation -> (transpose, flip up-down, flip left-right), applied in this order.
_UPRIGHT = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@accept_old_names({"upright": "apply_exif_orientation"})
def read_image(
    source: Path | str | bytes,
    *,
    name: str | None = None,
    apply_exif_orientation: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> UInt8[Tensor, "3 height width"]:
    """The RGB pixels of a PNG, JPEG or WEBP file, or of its bytes.

    Gray, palette, CMYK and 16-bit images (their high byte) become RGB; transparent pixels are blended with white.
    `apply_exif_orientation` rotates the image as its EXIF says; torchvision's and the official loader do not. `name`
    names bytes in error messages. Animated PNG and WEBP are refused; a multi-picture JPEG gives its first picture.

    Raises ImageError for everything that is not a readable image.
    """
    if isinstance(source, bytes):
        name, data = name or "image", source
    else:
        name = name or str(source)
        data = _file_bytes(Path(source).expanduser(), name)
    if not data:
        raise ImageError(f"{one_line(name)} is empty (0 bytes); replace or remove it.")
    with warnings.catch_warnings():
        # Pillow warns about properties that are checked here.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_header(image, name, max_pixels)
                return _decode(image, apply_exif_orientation)
        except ImageError:
            raise
        except MemoryError:
            raise
        # A damaged file raises OSError, ValueError, SyntaxError, struct.error, … depending on the format.
        except Exception as error:
            raise ImageError(f"{one_line(name)} cannot be read as {_allowed()}: {_reason(error)}.") from error


def _file_bytes(path: Path, name: str) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{one_line(name)} is {kind}; give the path of {_allowed()} file.")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{one_line(name)} has {status.st_size} bytes; at most {MAX_BYTES} are read.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        # Not Path.is_symlink, which raises again for an impossible name.
        broken = os.path.islink(path)  # noqa: PTH114
        reason = "is a link to nothing" if broken else f"cannot be opened: {_reason(error)}"
        raise ImageError(f"{one_line(name)} {reason}; check the path.") from error


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{one_line(name)} has {width}x{height} pixels; at most {max_pixels} are decoded: make it smaller."
        )
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise ImageError(f"{one_line(name)} is animated; save one frame as a still image.")


def _decode(image: Image.Image, apply_exif_orientation: bool) -> Tensor:
    image.load()
    orientation = _orientation(image) if apply_exif_orientation else 1
    picture = _rgb(image)
    flat = torch.frombuffer(picture.tobytes(), dtype=torch.uint8)
    pixels = flat.view(picture.height, picture.width, 3).permute(2, 0, 1)
    if orientation not in _UPRIGHT:
        return pixels
    transpose, up_down, left_right = _UPRIGHT[orientation]
    if transpose:
        pixels = pixels.transpose(1, 2)
    sides = [side for side, wanted in ((1, up_down), (2, left_right)) if wanted]
    return (pixels.flip(sides) if sides else pixels).contiguous()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit gray: Pillow's own conversion would clip instead of scale.
        high_byte = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # Damaged EXIF says nothing about the pixels.
    except Exception:
        return 1


def _allowed() -> str:
    return "a PNG, JPEG or WEBP"


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is of another kind, or damaged"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(text, limit=100).rstrip(".")
