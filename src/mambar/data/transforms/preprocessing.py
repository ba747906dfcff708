"""Size, crop and normalization of a model's input images; stored with the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mambar.data.loading.to_device import to_device
from mambar.deprecated import PREPROCESSING_FIELDS, accept_old_names, translate
from mambar.errors import InputError
from mambar.image_file import INTERPOLATIONS
from mambar.json_fields import check_choices, from_json_fields, to_json_fields

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@accept_old_names(PREPROCESSING_FIELDS)
@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Evaluation preprocessing of images.

    Attributes:
        img_size: Input size in pixels, a square's side or (height, width).
        crop_pct: Fraction of the resized image's side that the center crop keeps.
        interpolation: A key of `INTERPOLATIONS`.
        mean: Mean of each channel, for pixel values from 0 to 1.
        std: Standard deviation of each channel.
    """

    img_size: int | tuple[int, int] = 224
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if isinstance(self.img_size, list):
            object.__setattr__(self, "img_size", tuple(self.img_size))
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if min(self.size) < 1:
            raise InputError(f"img_size={self.img_size} is not a size in pixels; use 1 or more.")
        if not 0 < self.crop_pct <= 1:
            raise InputError(f"crop_pct={self.crop_pct} is not a fraction of the image; use more than 0 and at most 1.")
        check_choices(self, interpolation=INTERPOLATIONS)
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or not all(s > 0 for s in self.std):
            raise InputError(f"mean={self.mean} and std={self.std} must have 1 or 3 values each, std above 0.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)

    @property
    def resampling(self) -> Image.Resampling:
        return INTERPOLATIONS[self.interpolation]

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON; `from_dict` reads it back."""
        return to_json_fields(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Restores the result of `to_dict`; InputError for an unknown field."""
        try:
            return from_json_fields(cls, translate(values, PREPROCESSING_FIELDS), what="preprocessing")
        except TypeError as error:
            raise InputError(f"preprocessing={dict(values)} cannot be used: {error}.") from error

    def normalize(
        self, pixels: UInt8[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch channels height width"]:
        """float32 (pixels / 255 - mean) / std on the pixels' device; images and batches give equal bits."""
        # Made here and sent: with `device=` the copy would wait until the GPU has nothing left to do.
        mean, std = (to_device(torch.tensor(values)[:, None, None], pixels.device) for values in (self.mean, self.std))
        return pixels.contiguous().to(torch.float32).div_(255.0).sub_(mean).div_(std)

    def denormalize(
        self, images: Float[Tensor, "*batch channels height width"]
    ) -> UInt8[Tensor, "*batch channels height width"]:
        """The inverse of `normalize`, for display."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return images.float().mul(std).add_(mean).mul_(255.0).round_().clamp_(0, 255).to(torch.uint8)
