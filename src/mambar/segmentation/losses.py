"""Segmentation losses. Each is a mean over images, so the result does not depend on micro-batches or shards."""

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
    """Cross-entropy in at least float32, summed over labeled pixels and divided by the number of all pixels.

    As in mmsegmentation's default, ignored pixels count in the denominator. weights: loss weight of each class. Forward
    and backward are deterministic; `torch.nn.functional.cross_entropy` is not for maps on CUDA.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    valid = labels != IGNORE
    indices = torch.where(valid, labels, 0)[:, None]
    losses = -logits.log_softmax(1).gather(1, indices)[:, 0]  # (B, height, width)
    factor = valid.to(losses.dtype)
    if weights is not None:
        factor = factor * weights.to(losses.dtype)[indices[:, 0]]
    return (losses * factor).mean()


def dice_loss(
    logits: Float[Tensor, "batch classes height width"], labels: Int64[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """1 - Dice of the probabilities, averaged over the classes in the mask of an image, then over images.

    Dice = 2 · overlap / (predicted + true) over the labeled pixels (arXiv 1606.04797 without squares).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    valid = (labels != IGNORE)[:, None]
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    targets = (labels[:, None] == classes).to(logits.dtype)  # (B, classes, height, width)
    predicted = logits.softmax(1) * valid
    overlap, total = (predicted * targets).sum((2, 3)), (predicted + targets).sum((2, 3))
    occurs = (targets.sum((2, 3)) > 0).to(logits.dtype)
    losses = (1 - 2 * overlap / total.clamp(min=1e-6)) * occurs
    return (losses.sum(1) / occurs.sum(1).clamp(min=1)).mean()


def pixel_accuracy_sum(
    logits: Float[Tensor, "batch classes height width"], labels: Int64[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """The pixel accuracy of each image (labeled pixels only), summed over the images."""
    valid = labels != IGNORE
    correct = ((logits.argmax(1) == labels) & valid).sum((1, 2)).float()
    return (correct / valid.sum((1, 2)).clamp(min=1)).sum()
