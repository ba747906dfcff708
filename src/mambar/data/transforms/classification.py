"""The evaluation crop and the training augmentations of images.

These are the augmentations of DeiT III ("3-Augment", arXiv 2204.07118) as used for Mamba-R: random resized crop, flip,
one of gray / solarize / blur, color jitter; RandAugment replaces "one of three" in the last stage. Pillow is used as
for the published results, except for the random crop: torch's uint8 kernel takes a quarter of the time and differs by
at most one level of 255. `tests/data/transforms/test_classification.py` compares each step with torchvision's or
timm's.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mambar.data.keys import key as derived_key
from mambar.data.keys import numpy_generator, seeded_globals
from mambar.data.transforms import augment
from mambar.data.transforms.preprocessing import Preprocessing as Preprocessing
from mambar.errors import InputError, RecipeError
from mambar.image_file import evaluation_crop, scaled_size
from mambar.json_fields import Allowed, check_allowed

CROPS = ("resized", "shift", "center")
_ALLOWED: Allowed = (
    ("two fractions of the area in (0, 1], in rising order", lambda pair: 0 < pair[0] <= pair[1] <= 1, ("scale",)),
    ("two ratios width / height above 0, in rising order", lambda pair: 0 < pair[0] <= pair[1], ("ratio",)),
    ("0 pixels or more", lambda value: value >= 0, ("crop_padding",)),
    ("a probability, 0 to 1", lambda value: 0 <= value <= 1, ("hflip", "random_erase_prob")),
    ("0 (none) to 1", lambda value: 0 <= value <= 1, ("color_jitter",)),
)
_RAND_AUGMENT = re.compile(r"rand(-(m|n|mstd|mmax|inc|p)\d+(\.\d+)?)*")


def to_pil_image(image: UInt8[Tensor, "channels height width"]) -> Image.Image:
    """Converts a tensor to a Pillow image (1 channel: gray, 3: RGB)."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()  # (height, width, channels)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def pil_to_tensor(image: Image.Image) -> UInt8[Tensor, "channels height width"]:
    """Converts a Pillow image to a tensor."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Resize, center crop and normalization, as in the evaluation of timm and DeiT.

    The image is scaled so that the crop of size img_size / crop_pct fits, with Pillow's anti-aliased interpolation.
    """

    preprocessing: Preprocessing

    def pixels(self, image: UInt8[Tensor, "channels height width"]) -> UInt8[Tensor, "channels crop_height crop_width"]:
        """The crop as bytes, before normalization."""
        chosen, shape = self.preprocessing, (image.shape[1], image.shape[2])
        if scaled_size(*shape, chosen.size, chosen.crop_pct) == chosen.size == shape:
            return image
        picture = to_pil_image(image)
        return pil_to_tensor(
            evaluation_crop(picture, chosen.size, crop_pct=chosen.crop_pct, interpolation=chosen.interpolation)
        )

    def __call__(
        self, image: UInt8[Tensor, "channels height width"]
    ) -> Float[Tensor, "channels crop_height crop_width"]:
        return self.preprocessing.normalize(self.pixels(image))


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Training augmentation; every draw is derived from the key, so that (image, key) determines the pixels.

    Attributes:
        preprocessing: Output size, interpolation and normalization.
        train_crop: "resized" (random resized crop), "shift" (the evaluation crop, moved by up to `crop_padding` pixels
            with zero padding, for small images) or "center" (the evaluation crop).
        scale: Range of the crop's fraction of the image area.
        ratio: Range of the crop's width / height.
        crop_padding: Maximum shift in pixels.
        hflip: Probability of a horizontal flip; use 0 for digits and letters.
        auto_augment: "none", "three" (always one of gray, solarize and blur) or a RandAugment string of timm, such as
            "rand-m9-mstd0.5-inc1".
        color_jitter: Range of brightness, contrast and saturation factors around 1.
        random_erase_prob: Probability that a rectangle is set to the mean color.
    """

    preprocessing: Preprocessing
    train_crop: str = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding: int = 1
    hflip: float = 0.5
    auto_augment: str = "none"
    color_jitter: float = 0.0
    random_erase_prob: float = 0.0

    def __post_init__(self) -> None:
        if self.train_crop not in CROPS:
            raise RecipeError(f"train_crop={self.train_crop!r} is unknown; use one of {', '.join(CROPS)}.")
        check_allowed(self, _ALLOWED, error=RecipeError)
        if self.auto_augment not in ("none", "three") and not _RAND_AUGMENT.fullmatch(self.auto_augment):
            raise RecipeError(
                f"auto_augment={self.auto_augment!r} is unknown; use none, three, or RandAugment: rand-m9-mstd0.5-inc1."
            )
        if self.auto_augment.startswith("rand"):
            # Import timm here, once, and not in every worker process.
            _rand_augment(self.auto_augment, self.preprocessing)

    def pixels(
        self, image: UInt8[Tensor, "channels height width"], key: int
    ) -> UInt8[Tensor, "channels crop_height crop_width"]:
        """The augmented pixels as bytes, to be normalized as a batch on the device; needs `random_erase_prob=0`."""
        if self.random_erase_prob:
            raise InputError(
                f"random_erase_prob={self.random_erase_prob} needs normalized images; call the transform itself."
            )
        return self._augmented(image, key)

    def __call__(
        self, image: UInt8[Tensor, "channels height width"], key: int
    ) -> Float[Tensor, "channels crop_height crop_width"]:
        """The model's input for one image and its key."""
        normal = self.preprocessing.normalize(self._augmented(image, key))
        if self.random_erase_prob:
            generator = numpy_generator(derived_key(key, "erasing"))
            if generator.random() < self.random_erase_prob:
                normal = augment.random_erasing(normal, generator)
        return normal

    def _augmented(self, image: Tensor, key: int) -> Tensor:
        generator = numpy_generator(key)
        if self.train_crop == "resized":
            image = self._resized_crop(image, generator)
            if generator.random() < self.hflip:
                image = image.flip(-1)
        else:
            image = EvalTransform(preprocessing=self.preprocessing).pixels(image)
            down, right = 0, 0
            if self.train_crop == "shift" and self.crop_padding:
                drawn = generator.integers(2 * self.crop_padding + 1, size=2)
                down, right = (int(place) - self.crop_padding for place in drawn)
            image = augment.shift_and_flip(image, down, right, flipped=generator.random() < self.hflip)
        if self.auto_augment == "none" and not self.color_jitter:
            return image
        return pil_to_tensor(self._augment_color(to_pil_image(image), key, generator))

    def _resized_crop(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        height, width = self.preprocessing.size
        top, left, rows, cols = augment.random_resized_crop_box(
            image.shape[1], image.shape[2], self.scale, self.ratio, generator
        )
        part = image[:, top : top + rows, left : left + cols]
        if self.preprocessing.interpolation not in ("bilinear", "bicubic"):
            return pil_to_tensor(to_pil_image(part).resize((width, height), self.preprocessing.resampling))
        mode = self.preprocessing.interpolation
        return torch.nn.functional.interpolate(part[None], size=(height, width), mode=mode, antialias=True)[0]

    def _augment_color(self, picture: Image.Image, key: int, generator: np.random.Generator) -> Image.Image:
        if self.auto_augment == "three":
            picture = augment.three_augment(picture, generator)
        elif self.auto_augment != "none":
            with seeded_globals(derived_key(key, "randaugment")):
                picture = _rand_augment(self.auto_augment, self.preprocessing)(picture)
        return augment.color_jitter(picture, self.color_jitter, generator) if self.color_jitter else picture


@lru_cache(maxsize=8)
def _rand_augment(policy: str, preprocessing: Preprocessing) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    fill = tuple(min(255, round(255 * value)) for value in preprocessing.mean)
    options = {
        "translate_const": int(min(preprocessing.size) * 0.45),
        "img_mean": fill,
        "interpolation": preprocessing.resampling,
    }
    return rand_augment_transform(policy, options)
