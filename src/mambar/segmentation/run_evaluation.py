"""Evaluating a finished segmentation run, on its own data or on others."""

from pathlib import Path
from typing import Any

import torch

from mambar.data.loading.loaders import evaluation_batches
from mambar.data.registry import open_dataset
from mambar.data.transforms.segmentation import MaskChannelDataset
from mambar.errors import DataError
from mambar.evaluation.segmentation import SegmentationResult
from mambar.segmentation.evaluator import evaluate
from mambar.segmentation.files import load_with_inference
from mambar.segmentation.inference import Inference
from mambar.training.checkpoint.run_directory import read_located_recipe


def evaluate_run(
    run: str | Path,
    *,
    data: str | Path | None = None,
    split: str = "val",
    data_options: dict[str, Any] | None = None,
    inference: Inference | None = None,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> SegmentationResult:
    """mIoU, per-class IoU, pixel accuracy and boundary F-score of the segmenter in `run` on a split of `data`.

    data: by default what the run was trained on, with the same options. inference: by default as in training. The
    data's classes must be the model's.
    """
    model, trained_with = load_with_inference(run, device=device)
    if data is None:
        recipe = read_located_recipe(run)
        data, data_options = recipe.data, {**recipe.data_options, **(data_options or {})}
    dataset = open_dataset(data, split, kind="segmentation", **(data_options or {}))
    if model.classes is not None and tuple(model.classes) != tuple(dataset.classes):
        raise DataError(
            f"data={data} has {len(dataset.classes)} classes ({', '.join(dataset.classes[:4])}, …), the model "
            f"{len(model.classes)} ({', '.join(model.classes[:4])}, …); evaluate on data with the model's classes."
        )
    assert model.preprocessing is not None
    batches = evaluation_batches(MaskChannelDataset(dataset), lambda image: image, batch_size=1, workers=workers)
    return evaluate(
        model,
        batches,
        classes=dataset.classes,
        preprocessing=model.preprocessing,
        inference=inference or trained_with,
    )
