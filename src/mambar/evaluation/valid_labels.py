"""Top-1 and top-5 for images with one or several correct labels, among a part of the model's classes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from mambar.data.loading.loaders import Batch
from mambar.nn.eval_mode import eval_mode


@dataclass(frozen=True, kw_only=True)
class ValidLabelsResult:
    """Accuracy on a test set with a part of the model's classes.

    Attributes:
        top1: Fraction (0-1) of images whose largest logit belongs to a correct label.
        top5: Fraction (0-1) of images with a correct label among the five largest logits.
        count: Number of images.
        left_out: Number of images with no correct label among the model's classes.
        num_classes: Number of classes among which the model chooses.
    """

    top1: float
    top5: float
    count: int
    left_out: int
    num_classes: int


def evaluate_valid_labels(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    columns: Int64[Tensor, "classes"],
    occurring: Bool[Tensor, "classes"],
    device: torch.device | str = "cpu",
    prepare: Callable[[Tensor], Tensor],
) -> ValidLabelsResult:
    """Accuracy on batches with the field `valid_labels`; `prepare` is applied to the images on the device.

    `columns` are the indices of the classes in the model's logits, -1 for a class that it does not have. Classes that
    are not `occurring` in the data are ignored, as in the evaluation of ImageNet-A and -R.
    """
    allowed = occurring & (columns >= 0)
    correct, count, left_out = torch.zeros(2, dtype=torch.int64), 0, 0
    with eval_mode(model), torch.inference_mode():
        for batch in batches:
            logits = model(prepare(batch.images.to(device))).float().cpu()[:, columns.clamp_min(0)]
            best = logits.where(allowed, -torch.inf).topk(min(5, int(allowed.sum()))).indices
            for row, valid in zip(best, batch["valid_labels"], strict=True):
                is_correct = torch.isin(row, valid)
                correct += torch.stack([is_correct[0], is_correct.any()])
                known = bool(allowed[valid].any())
                count, left_out = count + known, left_out + (not known)
    top1, top5 = (correct / max(count, 1)).tolist()
    return ValidLabelsResult(top1=top1, top5=top5, count=count, left_out=left_out, num_classes=int(allowed.sum()))
