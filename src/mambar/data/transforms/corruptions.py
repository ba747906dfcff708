"""The 15 common corruptions of ImageNet-C (arXiv 1903.12261) at five severities.

The library corrupt-tta computes them, with the severities of ImageNet-C, which were chosen for 224 pixels. Its motion
blur, also within snow, is a uniform line and not that of ImageMagick, so results are not those on the published files.
Impulse noise is scikit-image's salt and pepper, because the library's cannot be seeded.
"""

import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mambar.data.keys import key, seeded_globals
from mambar.data.transforms.classification import EvalTransform
from mambar.errors import InputError
from mambar.messages import did_you_mean, needs_package

GROUPS: Final = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
KINDS: Final = tuple(kind for kinds in GROUPS.values() for kind in kinds)
SEVERITIES: Final = (1, 2, 3, 4, 5)
# Share of the pixel values that ImageNet-C replaces, by severity.
_IMPULSES: Final = (0.03, 0.06, 0.09, 0.17, 0.27)


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """Resize and crop of `transform`, then a corruption of `KINDS`; the seed and the crop's pixels determine the draws.

    Gray images are corrupted as RGB and averaged. Raises `InputError` if the library is not installed.
    """

    transform: EvalTransform
    kind: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            hint = did_you_mean(self.kind, KINDS, otherwise=f"use {', '.join(KINDS)}.")
            raise InputError(f"There is no corruption {self.kind!r}; {hint}")
        if self.severity not in SEVERITIES:
            raise InputError(f"severity={self.severity} does not exist; use 1 to 5.")
        try:
            import corrupt_tta  # noqa: F401
        except ImportError as error:
            raise InputError(needs_package("A corruption", "corrupt-tta", extra="robustness")) from error

    def __call__(self, image: UInt8[Tensor, "channels height width"]) -> UInt8[Tensor, "channels rows cols"]:
        return self.corrupt(self.transform.pixels(image))

    def corrupt(self, crop: UInt8[Tensor, "channels rows cols"]) -> UInt8[Tensor, "channels rows cols"]:
        """The corruption of an image that is resized and cropped already."""
        from corrupt_tta import corrupt
        from skimage.util import random_noise

        pixels = crop.expand(3, -1, -1).permute(1, 2, 0).numpy()
        seed = key(self.seed, "corruption", self.kind, self.severity, zlib.crc32(pixels.tobytes()))
        if self.kind == "impulse_noise":
            found = 255 * random_noise(pixels / 255, mode="s&p", amount=_IMPULSES[self.severity - 1], rng=seed)
        else:
            with seeded_globals(seed):
                found = corrupt(pixels, severity=self.severity, corruption_name=self.kind)
        corrupted = torch.from_numpy(np.asarray(found).astype(np.uint8)).permute(2, 0, 1)
        return corrupted if len(crop) == 3 else corrupted.float().mean(0, keepdim=True).to(torch.uint8)
