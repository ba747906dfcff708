"""Decodes one image to a tensor.

Pillow decodes, as for the published results. torchvision's decoder gave the same pixels in the same time (0.72 and
0.74 ms for a 500x375 JPEG on one core), and terminated the process on nearly every damaged PNG.
"""

import logging
import warnings
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mambar.deprecated import accept_old_names
from mambar.image_file import MAX_PIXELS, open_image

logger = logging.getLogger("mambar.images")


@accept_old_names({"upright": "apply_exif_orientation"})
def read_image(
    source: Path | str | bytes,
    *,
    name: str | None = None,
    apply_exif_orientation: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> UInt8[Tensor, "3 height width"]:
    """The RGB pixels of a PNG, JPEG or WEBP file, or of its bytes.

    A JPEG of more than `max_pixels` is reduced to a half, a quarter or an eighth of its side while it is decoded; other
    images of more are refused.

    Gray, palette, CMYK and 16-bit images (their high byte) become RGB; transparent pixels are blended with white.
    `apply_exif_orientation` rotates the image as its EXIF says; torchvision's and the official loader do not. `name`
    names bytes in error messages. Animated PNG and WEBP are refused; a multi-picture JPEG gives its first picture.

    Raises ImageError for everything that is not a readable image.
    """
    return _pixels(open_image(source, name=name, apply_exif_orientation=apply_exif_orientation, max_pixels=max_pixels))


def read_for_inference(
    source: Path | str | bytes, *, name: str | None, max_pixels: int, verb: str
) -> UInt8[Tensor, "3 height width"]:
    """The upright pixels of `read_image`; logs that an image is "segmented" (`verb`) at a reduced size."""
    image = open_image(source, name=name, max_pixels=max_pixels)
    if "full_size" in image.info:
        width, height = image.info["full_size"]
        shown = name or (str(source) if isinstance(source, str | Path) else "image")
        logger.warning(
            "%s: %dx%d pixels are %s at %dx%d; max_pixels (--max-pixels) sets the limit.",
            *(shown, width, height, verb, image.width, image.height),
        )
    return _pixels(image)


def _pixels(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    with warnings.catch_warnings():
        # The bytes are read-only, and no other object refers to them.
        warnings.simplefilter("ignore")
        flat = torch.frombuffer(image.tobytes(), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)
