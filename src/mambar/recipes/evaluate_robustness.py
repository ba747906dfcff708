"""Robustness of a trained classifier: common corruptions of its data, and test sets with ImageNet's classes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from mambar.data import Batch, EvalTransform, Subset, evaluation_batches, open_dataset
from mambar.data.classification.imagenet_variants import ImageNetVariant, class_columns
from mambar.data.transforms.corruptions import KINDS, SEVERITIES, Corruption
from mambar.errors import InputError
from mambar.evaluation.classification import ClassificationCounts, ClassificationResult
from mambar.evaluation.valid_labels import ValidLabelsResult, evaluate_valid_labels
from mambar.hub import load
from mambar.models.timm_vit import model_preprocessing
from mambar.nn.cuda_graph import use_cuda_graphs
from mambar.nn.eval_mode import eval_mode
from mambar.training.run_data import open_run_dataset


@dataclass(frozen=True, kw_only=True)
class CorruptionResult:
    """Top-1 accuracy (0-1) without corruption, and by kind and severity.

    Attributes:
        data: Name of the data.
        count: Number of images.
        library: Name and version of the library that corrupts.
        seed: Seed of the corruptions.
        clean: Accuracy on the images as they are.
        mean: Mean accuracy over kinds and severities; not the mCE, which is relative to another network.
        top1: Kind → severity → accuracy.
    """

    data: str
    count: int
    library: str
    seed: int
    clean: float
    mean: float
    top1: Mapping[str, Mapping[int, float]]


def evaluate_corruptions(
    run: str | Path,
    *,
    kinds: Sequence[str] = KINDS,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    data: str | None = None,
    split: str | None = None,
    batch_size: int = 64,
    data_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    num_workers: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> CorruptionResult:
    """Top-1 on the run's data, or `data`, without and with each corruption; `progress` receives a line for each.

    Corruptions are applied to the model's input, after resize and crop, as in ImageNet-C. An image is decoded once for
    all severities of a kind.
    """
    if not kinds or not severities:
        raise InputError("kinds or severities is empty; give one or more of each.")
    model = use_cuda_graphs(load(run, device=device))
    preprocessing = model_preprocessing(model)
    crop = EvalTransform(preprocessing=preprocessing)
    # Wrong names are refused before anything is evaluated.
    chosen = {
        kind: [Corruption(transform=crop, kind=kind, severity=each, seed=seed) for each in severities] for kind in kinds
    }
    dataset = open_run_dataset(run, data, split, data_options, classes=model.classes)
    top1: dict[str, dict[int, float]] = {}
    results: dict[str, ClassificationResult] = {}
    for kind, corruptions in chosen.items():
        # The images as they are need one evaluation only.
        names = [*(() if results else ("images",)), *map(str, severities)]
        batches = evaluation_batches(
            dataset, _Versions(crop, corruptions), batch_size=batch_size, num_workers=num_workers
        )
        results |= _evaluate_versions(
            model,
            batches,
            names,
            classes=dataset.classes,
            device=device,
            prepare=preprocessing.normalize,
        )
        top1[kind] = {each: results[str(each)].top1 for each in severities}
        for severity, share in top1[kind].items():
            progress(f"{kind} {severity}: top-1 {share:.2%}")
    shares = [share for row in top1.values() for share in row.values()]
    return CorruptionResult(
        data=dataset.name,
        count=results["images"].count,
        library=f"corrupt-tta {version('corrupt-tta')}",
        seed=seed,
        clean=results["images"].top1,
        mean=sum(shares) / len(shares),
        top1=top1,
    )


@dataclass(frozen=True)
class _Versions:
    """The crop of an image as "images", and each corruption of it under its severity."""

    crop: EvalTransform
    corruptions: Sequence[Corruption]

    def __call__(self, image: UInt8[Tensor, "channels height width"]) -> dict[str, Tensor]:
        crop = self.crop.pixels(image)
        return {"images": crop, **{str(each.severity): each.corrupt(crop) for each in self.corruptions}}


def _evaluate_versions(
    model: nn.Module,
    batches: Iterable[Batch],
    names: Sequence[str],
    *,
    classes: Sequence[str],
    device: str,
    prepare: Callable[[Tensor], Tensor],
) -> dict[str, ClassificationResult]:
    """The metrics of each of the named fields of the batches."""
    counts = {name: ClassificationCounts(classes) for name in names}
    with eval_mode(model), torch.inference_mode():
        for batch in batches:
            labels = batch.labels.to(device)
            for name, each in counts.items():
                each.add(model(prepare(batch[name].to(device))), labels, batch.indices)
    return {name: each.result() for name, each in counts.items()}


def evaluate_imagenet_variant(
    run: str | Path, *, data_options: Mapping[str, Any], batch_size: int = 64, device: str = "cpu", num_workers: int = 0
) -> ValidLabelsResult:
    """Accuracy on ImageNet-A, -R, -Sketch, V2 or ReaL; `data_options` are the arguments of `ImageNetVariant`."""
    model = use_cuda_graphs(load(run, device=device))
    dataset = open_dataset("imagenet_variant", "val", **data_options)
    whole = dataset.dataset if isinstance(dataset, Subset) else dataset
    assert isinstance(whole, ImageNetVariant)
    preprocessing = model_preprocessing(model)
    batches = evaluation_batches(
        dataset, EvalTransform(preprocessing=preprocessing).pixels, batch_size=batch_size, num_workers=num_workers
    )
    return evaluate_valid_labels(
        model,
        batches,
        columns=class_columns(model.classes, model.num_classes),
        occurring=whole.occurring,
        device=device,
        prepare=preprocessing.normalize,
    )
