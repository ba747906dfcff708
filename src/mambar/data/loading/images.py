"""Decodes one image to a tensor.

Pillow decodes, as for the published results. torchvision's decoder gave the same pixels in the same time (0.72 and
0.74 ms for a 500x375 JPEG on one core), and terminated the process on nearly every damaged PNG.
"""

import warnings
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from mambar.deprecated import accept_old_names
from mambar.image_file import MAX_PIXELS, open_image


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
    image = open_image(source, name=name, apply_exif_orientation=apply_exif_orientation, max_pixels=max_pixels)
    with warnings.catch_warnings():
        # The bytes are read-only, and no other object refers to them.
        warnings.simplefilter("ignore")
        flat = torch.frombuffer(image.tobytes(), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)
