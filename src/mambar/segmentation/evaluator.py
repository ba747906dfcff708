"""Evaluates a segmenter on a dataset: every image once, at its own size, with any number of processes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mambar.data.loading.loaders import Batch, evaluation_batches
from mambar.data.segmentation.masks import IGNORE
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.data.transforms.segmentation import MaskChannelDataset
from mambar.deprecated import LOADER_ARGUMENTS, accept_old_names
from mambar.errors import DataError
from mambar.evaluation.metrics import check_num_classes
from mambar.evaluation.segmentation import SegmentationCounts, SegmentationResult, compute_metrics, count_pixels
from mambar.nn.eval_mode import eval_mode
from mambar.segmentation.files import load_with_inference
from mambar.segmentation.inference import Inference, probabilities
from mambar.segmentation.segmenter import Segmenter
from mambar.training.run_data import open_run_dataset


@accept_old_names(LOADER_ARGUMENTS)
def evaluate_run(
    run: str | Path,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    data_options: dict[str, Any] | None = None,
    inference: Inference | None = None,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
) -> SegmentationResult:
    """mIoU, per-class IoU, pixel accuracy and boundary F-score of the segmenter in `run`.

    data: a dataset with the model's classes; by default the run's own dataset with the same options.
    split: by default "val", or all images of a folder given as `data` that has no validation split.
    inference: by default the settings of the run.
    """
    model, run_inference = load_with_inference(run, device=device)
    dataset = open_run_dataset(run, data, split, data_options, classes=model.classes, kind="segmentation")
    assert model.preprocessing is not None
    return evaluate(
        model,
        evaluation_batches(MaskChannelDataset(dataset), lambda image: image, batch_size=1, num_workers=num_workers),
        classes=dataset.classes,
        preprocessing=model.preprocessing,
        inference=inference or run_inference,
    )


@accept_old_names({"total": "all_reduce"})
def evaluate(
    model: Segmenter,
    batches: Iterable[Batch],
    *,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    inference: Inference,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    all_reduce: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> SegmentationResult:
    """Metrics of `model` in evaluation mode; the images of `batches` have the labels as a fourth channel.

    all_reduce: sums counts over the processes. The loss is the mean cross-entropy of the labeled pixels.
    """
    check_num_classes(model.num_classes, classes)
    counts = SegmentationCounts.zeros(len(classes))
    loss = torch.zeros(1, dtype=torch.float64)
    device = next(model.parameters()).device
    with eval_mode(model):
        for batch in batches:
            labels = batch.images[:, 3].to(device)
            for index, predicted, image_loss in _predictions(model, batch, labels, inference, preprocessing, autocast):
                counts = counts + count_pixels(predicted, batch.images[index, 3].to(predicted.device), len(classes))
                loss += image_loss.cpu()
    counts = SegmentationCounts.unflatten(all_reduce(counts.flatten()), len(classes))
    loss = all_reduce(loss).cpu()
    if not counts.confusion.sum():
        raise DataError(
            "there is nothing to measure: no pixel of the evaluated images is labeled. All masks hold ignored values "
            "(255, or classes named ignore or void), or no image could be read; check the masks."
        )
    return compute_metrics(counts, classes, loss=float(loss) / int(counts.confusion.sum()))


@torch.inference_mode()
def _predictions(
    model: Segmenter,
    batch: Batch,
    labels: Tensor,
    inference: Inference,
    preprocessing: Preprocessing,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterable[tuple[int, Tensor, Tensor]]:
    """(index in the batch, predicted classes, summed cross-entropy of the labeled pixels) of each image."""
    if _is_single_pass(inference, batch.images.shape[2], batch.images.shape[3]):
        images = preprocessing.normalize(batch.images[:, :3].to(labels.device)).to(next(model.parameters()).dtype)
        with autocast():
            logits = model(images)
        scores = logits.float().softmax(1)
        # On the CPU: counting takes dozens of small operations per image, whose launches dominate on a GPU.
        predicted = scores.argmax(1).cpu()
        losses = torch.stack([_summed_loss(*each) for each in zip(scores, labels, strict=True)]).cpu()
        yield from zip(range(len(batch)), predicted, losses, strict=True)
        return
    for index in range(len(batch)):
        predicted, loss = [], torch.zeros(1, dtype=torch.float64, device=labels.device)
        pixels = batch.images[index, :3]
        for rows, band in probabilities(model, pixels, inference, preprocessing=preprocessing, autocast=autocast):
            predicted.append(band.argmax(0))
            loss += _summed_loss(band, labels[index, rows.start : rows.stop])
        yield index, torch.cat(predicted), loss


def _is_single_pass(inference: Inference, height: int, width: int) -> bool:
    """True if `inference` is one forward pass of the whole image at its own size."""
    fits = inference.crop is None or max(height, width) <= inference.crop
    return fits and not inference.flip and inference.sizes(height, width) == [(height, width)]


def _summed_loss(scores: Tensor, labels: Tensor) -> Tensor:
    valid = labels != IGNORE
    own = scores.gather(0, torch.where(valid, labels, 0).long()[None])[0]
    return -(own.clamp(min=1e-12).log().double() * valid).sum()[None]
