"""Evaluation of a trained model on the data of its run or on other data."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.data import EvalTransform, ImageDataset, evaluation_batches, open_dataset, open_evaluation_dataset
from mambar.data.loading.unreadable_images import evenly_spaced_samples
from mambar.deprecated import LOADER_ARGUMENTS, accept_old_names
from mambar.errors import DataError, InputError
from mambar.evaluation import ClassificationResult, evaluate
from mambar.hub import load
from mambar.models.timm_vit import TimmViT, model_preprocessing
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.cuda_graph import use_cuda_graphs
from mambar.training.checkpoint.run_directory import read_located_recipe


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
    dataset = open_run_dataset(model, run if data is None else None, data, split, data_options or {})
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
    dataset = open_run_dataset(model, run, data, None, data_options or {})
    preprocessing = model_preprocessing(model)
    if img_size is not None:
        preprocessing = dataclasses.replace(preprocessing, img_size=img_size)
    transform = EvalTransform(preprocessing=preprocessing)
    samples = evenly_spaced_samples(dataset, count)
    return torch.stack([transform(sample.image) for sample in samples]), torch.tensor([s.label for s in samples])


def open_run_dataset(
    model: VisionMamba | TimmViT, run: Any, data: str | None, split: str | None, options: Mapping[str, Any]
) -> ImageDataset:
    """`data`, by default those of `run`; raises `DataError` if they do not have the model's classes."""
    if data is None:
        recipe = read_located_recipe(run or ".")
        data, dataset = recipe.data, open_dataset(recipe.data, split or "val", **{**recipe.data_options, **options})
    else:
        dataset = open_evaluation_dataset(data, split, **options)
    if model.classes is not None and tuple(model.classes) != tuple(dataset.classes):
        raise DataError(
            f"data={data} has {len(dataset.classes)} classes ({', '.join(dataset.classes[:4])}, …), the model "
            f"{len(model.classes)} ({', '.join(model.classes[:4])}, …); evaluate on data with the model's classes."
        )
    return dataset
