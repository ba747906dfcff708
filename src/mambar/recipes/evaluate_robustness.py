"""Robustness of a trained classifier: common corruptions of its data, and test sets with ImageNet's classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mambar.data import EvalTransform, Subset, evaluation_batches, open_dataset
from mambar.data.classification.imagenet_variants import ImageNetVariant, class_columns
from mambar.data.transforms.corruptions import KINDS, SEVERITIES, Corruption
from mambar.evaluation import evaluate
from mambar.evaluation.valid_labels import ValidLabelsResult, evaluate_valid_labels
from mambar.hub import load
from mambar.models.timm_vit import model_preprocessing
from mambar.nn.cuda_graph import use_cuda_graphs
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

    Corruptions are applied to the model's input, after resize and crop, as in ImageNet-C.
    """
    model = use_cuda_graphs(load(run, device=device))
    preprocessing = model_preprocessing(model)
    crop = EvalTransform(preprocessing=preprocessing)
    # Wrong names are refused before anything is evaluated.
    chosen = [Corruption(transform=crop, kind=kind, severity=each, seed=seed) for kind in kinds for each in severities]
    dataset = open_run_dataset(run, data, split, data_options, classes=model.classes)
    top1: dict[str, dict[int, float]] = {kind: {} for kind in kinds}
    found = []
    for transform in (crop.pixels, *chosen):
        batches = evaluation_batches(dataset, transform, batch_size=batch_size, num_workers=num_workers)
        found.append(evaluate(model, batches, classes=dataset.classes, device=device, prepare=preprocessing.normalize))
        if isinstance(transform, Corruption):
            top1[transform.kind][transform.severity] = found[-1].top1
            progress(f"{transform.kind} {transform.severity}: top-1 {found[-1].top1:.2%}")
    return CorruptionResult(
        data=dataset.name,
        count=found[0].count,
        library=f"corrupt-tta {version('corrupt-tta')}",
        seed=seed,
        clean=found[0].top1,
        mean=sum(result.top1 for result in found[1:]) / len(chosen),
        top1=top1,
    )


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
