"""The HTML report of a classification run: curves, confusion matrix, example predictions and token norms."""

from typing import Any

import torch
from torch import Tensor, nn

from mambar.analysis import ExamplePrediction, FigureLabel
from mambar.analysis.draw.norm_panels import compare_norms
from mambar.data.dataset import ImageDataset
from mambar.data.loading.unreadable_images import evenly_spaced_samples
from mambar.data.transforms.classification import EvalTransform
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.evaluation.classification import ClassificationResult
from mambar.evaluation.prediction import class_probabilities
from mambar.models.protocol import TokenModel
from mambar.training.recipe import Recipe
from mambar.training.task import EvalResult

_NUM_SAMPLES, _NUM_SHOWN, _NUM_MAPS = 64, 12, 4


def contents(
    model: nn.Module, *, recipe: Recipe, result: EvalResult, val_set: ImageDataset, preprocessing: Preprocessing
) -> dict[str, Any]:
    """The arguments of `write_run_report` for the classifier `model` with the evaluation `result`."""
    panels = []
    if isinstance(model, TokenModel):
        inputs, shown, _ = _sample(val_set, preprocessing)
        label = FigureLabel(data=f"{val_set.name}, validation", seed=recipe.seed)
        panels = compare_norms({recipe.name: model}, inputs[:_NUM_MAPS], shown=shown[:_NUM_MAPS], label=label)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    top = {name: f"{value:.2%}" for name, value in result.metrics.items() if name.startswith("top")}
    return {
        "classes": val_set.classes,
        "confusion": result.details.confusion if isinstance(result.details, ClassificationResult) else None,
        "predictions": example_predictions(model, val_set, preprocessing),
        "norm_panels": {"Validation images": panels},
        "summary": {**top, "validation images": f"{len(val_set):,}", "parameters": f"{parameters:,}"},
    }


def _sample(val_set: ImageDataset, preprocessing: Preprocessing) -> tuple[Tensor, list[Any], list[int]]:
    """Evenly spaced validation images: model inputs, pixels to show, labels."""
    transform = EvalTransform(preprocessing=preprocessing)
    inputs, shown, labels = [], [], []
    for sample in evenly_spaced_samples(val_set, _NUM_SAMPLES):
        pixels = transform.pixels(sample.image)
        inputs.append(preprocessing.normalize(pixels))
        shown.append(pixels.numpy())
        labels.append(sample.label)
    return torch.stack(inputs), shown, labels


def example_predictions(
    model: nn.Module, val_set: ImageDataset, preprocessing: Preprocessing
) -> list[ExamplePrediction]:
    """Validation images with predictions: errors first, then by rising probability."""
    inputs, shown, labels = _sample(val_set, preprocessing)
    best = class_probabilities(model, inputs).max(1)
    found = [
        ExamplePrediction(
            image=image, true=val_set.classes[label], predicted=val_set.classes[index], probability=probability
        )
        for image, label, index, probability in zip(
            shown, labels, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
    return sorted(found, key=lambda example: (example.correct, example.probability))[:_NUM_SHOWN]
