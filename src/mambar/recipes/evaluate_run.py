"""Evaluation of a trained model on the data of its run or on other data."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.data import EvalTransform, evaluation_batches
from mambar.data.loading.unreadable_images import evenly_spaced_samples
from mambar.deprecated import LOADER_ARGUMENTS, accept_old_names
from mambar.errors import InputError
from mambar.evaluation import ClassificationResult, evaluate
from mambar.hub import load
from mambar.models.timm_vit import TimmViT, model_preprocessing
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.cuda_graph import use_cuda_graphs
from mambar.training.run_data import open_run_dataset


@accept_old_names(LOADER_ARGUMENTS)
def evaluate_run(
    run: str | Path | VisionMamba | TimmViT,
    *,
    data: str | None = None,
    split: str | None = None,
    batch_size: int = 64,
    crop_pct: float | None = None,
    data_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    num_workers: int = 0,
) -> ClassificationResult:
    """Accuracy (top-1, top-5, per class) on `data` of a run directory, a file, a hub id, or a model in memory.

    data: by default those of the run; they must have the model's classes. split: by default "val", or all images of a
    folder given as `data` that has no validation split. crop_pct: center crop as a fraction of the resized image, by
    default the model's own.
    """
    if isinstance(run, str | Path):
        model = use_cuda_graphs(load(run, device=device))
    elif data is None:
        raise InputError("a model in memory has no data of its own; give data=SET.")
    else:
        model = run.to(device)
    dataset = open_run_dataset(run, data, split, data_options, classes=model.classes)
    preprocessing = model_preprocessing(model)
    if crop_pct is not None:
        preprocessing = dataclasses.replace(preprocessing, crop_pct=crop_pct)
    batches = evaluation_batches(
        dataset,
        EvalTransform(preprocessing=preprocessing).pixels,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=device.startswith("cuda"),
    )
    return evaluate(model, batches, classes=dataset.classes, device=device, prepare=preprocessing.normalize)


def held_out_images(
    model: VisionMamba | TimmViT,
    *,
    run: str | Path | None = None,
    data: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    count: int = 256,
    data_options: Mapping[str, Any] | None = None,
) -> tuple[Float[Tensor, "images channels height width"], Int64[Tensor, "images"]]:
    """Up to `count` preprocessed images of `data`, and their class indices.

    data: by default the validation images of `run`; see `evaluate_run`. img_size: in pixels, by default that of the
    model's preprocessing. The images are evenly spaced, so they are always the same.
    """
    dataset = open_run_dataset(run, data, None, data_options, classes=model.classes)
    preprocessing = model_preprocessing(model)
    if img_size is not None:
        preprocessing = dataclasses.replace(preprocessing, img_size=img_size)
    transform = EvalTransform(preprocessing=preprocessing)
    samples = evenly_spaced_samples(dataset, count)
    return torch.stack([transform(sample.image) for sample in samples]), torch.tensor([s.label for s in samples])
