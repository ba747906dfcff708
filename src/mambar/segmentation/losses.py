"""Losses over labeled pixels. Each is a mean over images, so how a batch is cut into parts changes nothing."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.data.segmentation.masks import IGNORE


def pixel_cross_entropy(
    logits: Float[Tensor, "batch classes height width"],
    labels: Int64[Tensor, "batch height width"],
    *,
    weights: Float[Tensor, "classes"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy in at least float32, summed over labeled pixels, divided by all pixels of the batch.

    That is mmsegmentation's default: ignored pixels count as 0, not as absent, so an image of few labeled pixels has
    a small loss. `weights` are factors of the classes. Forward and backward have the same bits in every run, which
    `torch.nn.functional.cross_entropy` has not for maps on CUDA.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    valid = labels != IGNORE
    known = torch.where(valid, labels, 0)[:, None]
    surprise = -logits.log_softmax(1).gather(1, known)[:, 0]  # (B, height, width)
    factor = valid.to(surprise.dtype)
    if weights is not None:
        factor = factor * weights.to(surprise.dtype)[known[:, 0]]
    return (surprise * factor).mean()


def dice_loss(
    logits: Float[Tensor, "batch classes height width"], labels: Int64[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """1 - Dice of the probabilities, the mean over the classes that an image shows, then over the images.

    Dice = 2 · overlap / (predicted + true), over the labeled pixels (arXiv 1606.04797 without the squares).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    valid = (labels != IGNORE)[:, None]
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    truth = (labels[:, None] == classes).to(logits.dtype)  # (B, classes, height, width)
    guess = logits.softmax(1) * valid
    overlap, total = (guess * truth).sum((2, 3)), (guess + truth).sum((2, 3))
    there = (truth.sum((2, 3)) > 0).to(logits.dtype)
    missed = (1 - 2 * overlap / total.clamp(min=1e-6)) * there
    return (missed.sum(1) / there.sum(1).clamp(min=1)).mean()


def pixel_accuracy_sum(
    logits: Float[Tensor, "batch classes height width"], labels: Int64[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """The shares of right pixels among the labeled ones, summed over the images."""
    valid = labels != IGNORE
    right = ((logits.argmax(1) == labels) & valid).sum((1, 2)).float()
    return (right / valid.sum((1, 2)).clamp(min=1)).sum()
