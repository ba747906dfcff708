"""Measuring a segmenter: every image once, at its own size, with the same result on any number of processes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mambar.data.loading.loaders import Batch
from mambar.data.segmentation.masks import IGNORE
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import DataError
from mambar.evaluation.segmentation import SegmentationCounts, SegmentationResult, count_pixels, compute_metrics
from mambar.segmentation.inference import Inference, probabilities
from mambar.segmentation.segmenter import Segmenter


def evaluate(
    model: Segmenter,
    batches: Iterable[Batch],
    *,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    inference: Inference,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    total: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> SegmentationResult:
    """Evaluates `model`, in evaluation mode for the time being, on batches of red, green, blue and label bytes.

    `total` adds counts up over the processes. The loss is the mean surprise (cross-entropy) of a labeled pixel.
    """
    if model.num_classes != len(classes):
        raise DataError(
            f"the model has {model.num_classes} classes, the data {len(classes)} ({', '.join(classes[:5])}, …); "
            "evaluate on data with the classes it was trained on."
        )
    was_training = model.training
    model.eval()
    counts = SegmentationCounts.zeros(len(classes))
    surprise = torch.zeros(1, dtype=torch.float64)
    device = next(model.parameters()).device
    for batch in batches:
        labels = batch.images[:, 3].to(device)
        for number, predicted, missed in _predictions(model, batch, labels, inference, preprocessing, autocast):
            counts = counts + count_pixels(predicted, batch.images[number, 3].to(predicted.device), len(classes))
            surprise += missed.cpu()
    model.train(was_training)
    counts = SegmentationCounts.unflatten(total(counts.flatten()), len(classes))
    surprise = total(surprise).cpu()
    return compute_metrics(counts, classes, loss=float(surprise) / max(int(counts.confusion.sum()), 1))


@torch.inference_mode()
def _predictions(
    model: Segmenter,
    batch: Batch,
    labels: Tensor,
    inference: Inference,
    preprocessing: Preprocessing,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterable[tuple[int, Tensor, Tensor]]:
    """(number in the batch, predicted classes, summed surprise of its labeled pixels) of every image."""
    if _plain(inference, batch.images.shape[2], batch.images.shape[3]):
        # One look at the whole image: all of a batch at once.
        images = preprocessing.normalize(batch.images[:, :3].to(labels.device)).to(next(model.parameters()).dtype)
        with autocast():
            logits = model(images)
        shares = logits.float().softmax(1)
        # Counting is dozens of small steps an image, each of which a shared GPU lets wait; these images are small.
        predicted = shares.argmax(1).cpu()
        missed = torch.stack([_surprise(each, truth) for each, truth in zip(shares, labels, strict=True)]).cpu()
        yield from zip(range(len(batch)), predicted, missed, strict=True)
        return
    for number in range(len(batch)):
        predicted, missed = [], torch.zeros(1, dtype=torch.float64, device=labels.device)
        bands = probabilities(
            model, batch.images[number, :3], inference, preprocessing=preprocessing, autocast=autocast
        )
        for rows, band in bands:
            predicted.append(band.argmax(0))
            missed += _surprise(band, labels[number, rows.start : rows.stop])
        yield number, torch.cat(predicted), missed


def _plain(inference: Inference, height: int, width: int) -> bool:
    """Whether the settings come to one look at the whole image at its own size."""
    fits = inference.crop is None or max(height, width) <= inference.crop
    return fits and not inference.flip and inference.sizes(height, width) == [(height, width)]


def _surprise(shares: Tensor, labels: Tensor) -> Tensor:
    valid = labels != IGNORE
    own = shares.gather(0, torch.where(valid, labels, 0).long()[None])[0]
    return -(own.clamp(min=1e-12).log().double() * valid).sum()[None]
