"""Accuracy from patches outside the objects alone, against that from the others ("lazy aggregation")."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.analysis.measure.activations import capture_activations
from mambar.analysis.measure.ground_truth import background_share
from mambar.data import ImageDataset, Sample, evaluation_batches
from mambar.data.boxed_images import object_mask
from mambar.errors import InputError
from mambar.evaluation.frozen_features import FeatureSet, FrozenScore, evaluate_features


def background_accuracy(
    analyzed: AnalyzedModel,
    train: ImageDataset,
    test: ImageDataset,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
    seed: int = 0,
) -> dict[str, FrozenScore]:
    """Linear accuracy of two features: the mean of the patches "outside" all objects, and that of those "inside".

    Patches are those of the last layer after the final norm. Outside: no pixel of the patch is in a box or mask;
    inside: all other patches. Images without both are left out, in training and test. Lazy aggregation, class
    information that a network collects in background patches, is described in arXiv 2602.22394.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
    found = {"train": _means(analyzed, train, **options), "test": _means(analyzed, test, **options)}
    for split, features in found.items():
        if not len(features.labels):
            raise InputError(f"No {split} image has patches inside and outside of objects; use data with boxes.")
    scores = evaluate_features(**found, num_classes=len(test.classes), protocols=("linear",), device=device, seed=seed)
    return {score.features: score for score in scores}


def _means(analyzed: AnalyzedModel, dataset: ImageDataset, **options: Any) -> FeatureSet:
    rows: dict[str, list[Tensor]] = {"outside": [], "inside": []}
    labels = []
    for batch in evaluation_batches(dataset, _WithObjects(analyzed), **options):
        (tokens,) = capture_activations(analyzed.model, batch.images, {"normed": [-1]})["normed"]
        outside = (batch["background"] == 1).flatten(1).to(tokens.patches)
        both = (outside.sum(1) * (1 - outside).sum(1) > 0).cpu()
        for name, weights in (("outside", outside), ("inside", 1 - outside)):
            means = (weights[..., None] * tokens.patches).sum(1) / weights.sum(1, keepdim=True)
            rows[name].append(means.float().cpu()[both])
        labels.append(batch.labels[both])
    joined = {name: torch.cat(parts).numpy() for name, parts in rows.items()}
    return FeatureSet(features=joined, labels=torch.cat(labels).numpy().astype(np.int64))


@dataclass(frozen=True)
class _WithObjects:
    """A transform whose samples have the share of background of each patch."""

    analyzed: AnalyzedModel

    def transform_sample(self, sample: Sample, key: int) -> Mapping[str, Tensor]:
        mask = object_mask(sample)
        if mask is None:
            raise InputError("The images have no boxes or masks; use data with them, such as tiny_imagenet.")
        share = background_share(self.analyzed.resize_mask(mask)[None], self.analyzed.model.patch_size)
        return {"images": self.analyzed.preprocess(sample.image), "background": share[0]}
