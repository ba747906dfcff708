"""Mixup and CutMix of a batch with its reversed copy: timm's batch mode, with all draws derived from a key.

Mixup: arXiv 1710.09412. CutMix: arXiv 1905.04899. `tests/data/transforms/test_mixup.py` compares pixels and
targets with `timm.data.Mixup` for equal parameters.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.data.keys import numpy_generator
from mambar.deprecated import accept_old_names
from mambar.errors import RecipeError
from mambar.json_fields import Allowed, check_allowed

_ALLOWED: Allowed = (
    ("a beta parameter, 0 (off) or more", lambda value: 0 <= value < math.inf, ("mixup_alpha", "cutmix_alpha")),
    ("a probability, 0 to 1", lambda value: 0 <= value <= 1, ("prob", "switch_prob", "label_smoothing")),
    ("1 or more", lambda value: value >= 1, ("num_classes",)),
)


def soft_targets(
    labels: Int64[Tensor, "batch"], num_classes: int, *, smoothing: float = 0.0
) -> Float[Tensor, "batch classes"]:
    """One-hot rows; `smoothing` of each row's mass is spread evenly over all classes."""
    rest = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), rest, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1.0 - smoothing + rest)


@dataclass(frozen=True, kw_only=True)
class MixParams:
    """Parameters of a batch: `lam`, the weight of the original images, and CutMix's box (top, bottom, left, right)."""

    lam: float
    box: tuple[int, int, int, int] | None = None


@accept_old_names(
    {"mixup": "mixup_alpha", "cutmix": "cutmix_alpha", "switch": "switch_prob", "smoothing": "label_smoothing"}
)
@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Mixup and CutMix of a batch; image i is mixed with image B-1-i.

    Unlike `timm.data.Mixup`, an odd batch is allowed: its middle image is mixed with itself.

    Attributes:
        mixup_alpha: Parameter of mixup's beta distribution; 0 disables mixup.
        cutmix_alpha: Parameter of CutMix's beta distribution; 0 disables CutMix.
        prob: Probability that a batch is mixed.
        switch_prob: Probability of CutMix where both are enabled.
        label_smoothing: Share of each target that is spread over all classes, also in batches that are not mixed.
        num_classes: Length of a target.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.0
    num_classes: int

    def __post_init__(self) -> None:
        check_allowed(self, _ALLOWED, error=RecipeError)

    def draw(self, height: int, width: int, key: int) -> MixParams:
        """Parameters of the batch with this key; `lam` is corrected where the image border clips the box."""
        generator = numpy_generator(key)
        mixed, switched = generator.random(2)
        if mixed >= self.prob or not (self.mixup_alpha or self.cutmix_alpha):
            return MixParams(lam=1.0)
        if not (self.cutmix_alpha and (not self.mixup_alpha or switched < self.switch_prob)):
            return MixParams(lam=float(generator.beta(self.mixup_alpha, self.mixup_alpha)))
        edge = math.sqrt(1.0 - float(generator.beta(self.cutmix_alpha, self.cutmix_alpha)))
        rows, cols = int(height * edge), int(width * edge)
        row, col = int(generator.integers(height)), int(generator.integers(width))
        top, bottom = max(row - rows // 2, 0), min(row + (rows + 1) // 2, height)
        left, right = max(col - cols // 2, 0), min(col + (cols + 1) // 2, width)
        lam = 1.0 - (bottom - top) * (right - left) / (height * width)
        return MixParams(lam=lam, box=(top, bottom, left, right))

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], labels: Int64[Tensor, "batch"], key: int
    ) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch classes"]]:
        """(mixed images, soft targets) on the images' device; the input is not modified."""
        drawn = self.draw(images.shape[-2], images.shape[-1], key)
        targets = soft_targets(labels, self.num_classes, smoothing=self.label_smoothing)
        if drawn.lam == 1.0:
            return images, targets
        if drawn.box is None:
            images = (images * drawn.lam).add_(images.flip(0).mul_(1.0 - drawn.lam))
        else:
            top, bottom, left, right = drawn.box
            other = images[:, :, top:bottom, left:right].flip(0)
            images = images.clone()
            images[:, :, top:bottom, left:right] = other
        return images, targets * drawn.lam + targets.flip(0) * (1.0 - drawn.lam)
