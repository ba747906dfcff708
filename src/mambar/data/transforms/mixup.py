"""Mixup and CutMix of a batch with itself in reverse order, as timm's per-batch mode, drawn from a key.

Mixup: arXiv 1710.09412. CutMix: arXiv 1905.04899. `tests/data/transforms/test_mixup.py` holds pixels and
targets against `timm.data.Mixup` for the same draw.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.data.keys import numpy_generator
from mambar.errors import RecipeError


def soft_targets(
    labels: Int64[Tensor, "batch"], num_classes: int, *, smoothing: float = 0.0
) -> Float[Tensor, "batch classes"]:
    """One-hot rows; `smoothing` of each row's mass is spread evenly over all classes."""
    rest = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), rest, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1.0 - smoothing + rest)


@dataclass(frozen=True, kw_only=True)
class MixDraw:
    """What a batch drew: its own pixels' share `kept`; for CutMix the box (top, bottom, left, right)."""

    kept: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Mixes image i with image B-1-i: by pixel values (mixup) or by a pasted box (cutmix).

    `mixup` and `cutmix` are the beta distributions' parameters (0 switches one off); `prob` is the chance
    that a batch is mixed at all, `switch` that it is cutmix when both are on. `smoothing` also acts on
    batches that are not mixed. Unlike timm's, an odd batch is allowed: its middle image meets itself.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.0
    num_classes: int

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(f"{name}={getattr(self, name)} is not a beta parameter; use 0 (off) or more.")
        for name in ("prob", "switch", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name}={getattr(self, name)} is not a probability; use 0 to 1.")
        if self.num_classes < 1:
            raise RecipeError(f"num_classes={self.num_classes} leaves nothing to tell apart; use 1 or more.")

    def draw(self, height: int, width: int, key: int) -> MixDraw:
        """The draw of the batch with this key; the box's area corrects `kept` where the border clips it."""
        generator = numpy_generator(key)
        mixed, switched = generator.random(2)
        if mixed >= self.prob or not (self.mixup or self.cutmix):
            return MixDraw(kept=1.0)
        if not (self.cutmix and (not self.mixup or switched < self.switch)):
            return MixDraw(kept=float(generator.beta(self.mixup, self.mixup)))
        edge = math.sqrt(1.0 - float(generator.beta(self.cutmix, self.cutmix)))
        rows, cols = int(height * edge), int(width * edge)
        row, col = int(generator.integers(height)), int(generator.integers(width))
        top, bottom = max(row - rows // 2, 0), min(row + (rows + 1) // 2, height)
        left, right = max(col - cols // 2, 0), min(col + (cols + 1) // 2, width)
        kept = 1.0 - (bottom - top) * (right - left) / (height * width)
        return MixDraw(kept=kept, box=(top, bottom, left, right))

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], labels: Int64[Tensor, "batch"], key: int
    ) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch classes"]]:
        """(mixed images, soft targets), on the images' device; the given images are left as they are."""
        drawn = self.draw(images.shape[-2], images.shape[-1], key)
        targets = soft_targets(labels, self.num_classes, smoothing=self.smoothing)
        if drawn.kept == 1.0:
            return images, targets
        if drawn.box is None:
            images = (images * drawn.kept).add_(images.flip(0).mul_(1.0 - drawn.kept))
        else:
            top, bottom, left, right = drawn.box
            other = images[:, :, top:bottom, left:right].flip(0)
            images = images.clone()
            images[:, :, top:bottom, left:right] = other
        return images, targets * drawn.kept + targets.flip(0) * (1.0 - drawn.kept)
