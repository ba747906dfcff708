"""The HTML report of a classification run: curves, confusion matrix, example predictions and token norms."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mambar.analysis import ExamplePrediction, FigureLabel
from mambar.analysis.draw.norm_panels import compare_norms
from mambar.data.dataset import ImageDataset, Sample
from mambar.data.loading.unreadable_images import evenly_spaced_samples, readable_samples
from mambar.data.transforms.classification import EvalTransform
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.evaluation.classification import ClassificationResult
from mambar.evaluation.prediction import class_probabilities
from mambar.models.protocol import TokenModel
from mambar.training.recipe import Recipe
from mambar.training.task import EvalResult

_NUM_SAMPLES, _NUM_WRONG, _NUM_SHOWN, _NUM_MAPS = 64, 8, 12, 4


def contents(
    model: nn.Module, *, recipe: Recipe, result: EvalResult, val_set: ImageDataset, preprocessing: Preprocessing
) -> dict[str, Any]:
    """The arguments of `write_run_report` for the classifier `model` with the evaluation `result`."""
    panels = []
    if isinstance(model, TokenModel):
        inputs, shown = _inputs(evenly_spaced_samples(val_set, _NUM_MAPS), preprocessing)
        label = FigureLabel(data=f"{val_set.name}, validation", seed=recipe.seed)
        panels = compare_norms({recipe.name: model}, inputs, shown=shown, label=label)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    top = {name: f"{value:.2%}" for name, value in result.metrics.items() if name.startswith("top")}
    details = result.details if isinstance(result.details, ClassificationResult) else None
    misclassified = details.misclassified if details else ()
    return {
        "model": recipe.name,
        "classes": val_set.classes,
        "confusion": details.confusion if details else None,
        "predictions": example_predictions(model, val_set, preprocessing, misclassified),
        "norm_panels": {"Validation images": panels},
        "summary": {**top, "validation images": f"{len(val_set):,}", "parameters": f"{parameters:,}"},
    }


def _inputs(samples: Sequence[Sample], preprocessing: Preprocessing) -> tuple[Tensor, list[np.ndarray]]:
    """Model inputs, and pixels to show."""
    pixels = [EvalTransform(preprocessing=preprocessing).pixels(sample.image) for sample in samples]
    return torch.stack([preprocessing.normalize(each) for each in pixels]), [each.numpy() for each in pixels]


def example_predictions(
    model: nn.Module, val_set: ImageDataset, preprocessing: Preprocessing, misclassified: Sequence[int]
) -> list[ExamplePrediction]:
    """Predictions of validation images: of `misclassified` indices, then correct ones by rising probability."""
    wrong = [sample for _, sample in readable_samples(val_set, misclassified[:_NUM_WRONG])]
    samples = [*wrong, *evenly_spaced_samples(val_set, _NUM_SAMPLES)]
    inputs, shown = _inputs(samples, preprocessing)
    best = class_probabilities(model, inputs).max(1)
    found = [
        ExamplePrediction(
            image=image, true=val_set.classes[sample.label], predicted=val_set.classes[index], probability=probability
        )
        for image, sample, index, probability in zip(
            shown, samples, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
    correct = sorted((each for each in found if each.correct), key=lambda each: each.probability)
    return [*(each for each in found[: len(wrong)] if not each.correct), *correct][:_NUM_SHOWN]
