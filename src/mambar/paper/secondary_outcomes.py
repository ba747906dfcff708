"""Secondary outcomes of one network: mixer norms, background patches, changed outliers, test-time registers."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from mambar.analysis.analyzed_model import AnalyzedModel, open_model
from mambar.analysis.measure.activations import capture_activations
from mambar.analysis.measure.background_features import background_accuracy
from mambar.analysis.measure.norms import l2_norms
from mambar.analysis.measure.outliers import MedianDeviation, OutlierRule, TopShare
from mambar.analysis.measure.register_neurons import (
    evaluate_added_registers,
    find_register_neurons,
    register_variants,
)
from mambar.analysis.measure.token_changes import CHANGES, ChangedOutliers
from mambar.data import ImageDataset, evaluation_batches
from mambar.data.boxed_images import object_mask
from mambar.data.registry import open_dataset, open_evaluation_dataset
from mambar.errors import InputError
from mambar.models.protocol import TokenModel
from mambar.models.vision_mamba import VisionMamba
from mambar.paper.context import Context
from mambar.paper.sweep import Cell

logger = logging.getLogger("mambar.paper")

_NUM_IMAGES, _BATCH = 2000, 64
# Tokens that are changed, by name; the second rule finds some in every network.
RULES: Final[Mapping[str, OutlierRule]] = {"outliers": MedianDeviation(), "highest-norm 5 %": TopShare()}
# Numbers of registers that are added to trained networks.
ADDED: Final = (1, 4)
Batches = list[tuple[Tensor, Tensor]]


def measure_secondary(directory: Path, cell: Cell, seed: int, context: Context) -> dict[str, Any]:
    """Columns and statistics by layer of one trained network; `not_run` has the reason for each part left out.

    With `context.runs` all images of the context's data are measured, else the validation images.
    """
    recipe = cell.recipe
    analyzed = open_model(directory, device=context.device)
    limit = 64 if context.budget == "smoke" else _NUM_IMAGES
    options: dict[str, Any] = {"limit": limit, **recipe.data_options}
    if context.runs:
        dataset = open_evaluation_dataset(recipe.data, **options)
    else:
        dataset = open_dataset(recipe.data, "val", **options)
    batches = _shuffled(analyzed, dataset, num_workers=context.num_workers)
    norms = _norms(analyzed.model, batches)
    limits = {name: [rule.threshold(layer) for layer in norms["residual"]] for name, rule in RULES.items()}
    found: dict[str, Any] = {"num_images": sum(map(len, (labels for _, labels in batches))), "not_run": {}}
    found["layers"] = _by_layer(norms, limits["outliers"])
    found["columns"] = {}
    model = analyzed.model
    if isinstance(model, VisionMamba):
        found["columns"] |= dict(_variants(model, limits, batches, found["not_run"], seed))
    else:
        found["not_run"]["changed outliers, added registers"] = f"{type(model).__name__} is no Vision Mamba"
    try:
        found["columns"] |= _background(analyzed, cell, dataset, context, seed)
    except InputError as error:
        found["not_run"]["background patches"] = str(error).rstrip(".")
    for part, reason in found["not_run"].items():
        logger.warning("%s: %s not run: %s.", cell.row, part, reason)
    return found


def _shuffled(analyzed: AnalyzedModel, dataset: ImageDataset, *, num_workers: int) -> Batches:
    """All images in random order: folders list them by class. Labels are -1 if the model has other classes."""
    given = list(evaluation_batches(dataset, analyzed.preprocess, batch_size=_BATCH, num_workers=num_workers))
    images, labels = (torch.cat([batch[name] for batch in given]) for name in ("images", "labels"))
    if analyzed.classes is None or tuple(analyzed.classes) != tuple(dataset.classes):
        labels = labels * 0 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return list(zip(images[order].split(_BATCH), labels[order].split(_BATCH), strict=True))


def _norms(model: TokenModel, batches: Batches) -> dict[str, Tensor]:
    """The norms of all patches, (layers, tokens): in the residual stream, and of the output that the block added."""
    found: dict[str, list[Tensor]] = {"residual": [], "mixer": []}
    for images, _ in batches:
        for name, layers in capture_activations(model, images, {"residual": None, "mixer": None}).items():
            found[name].append(torch.stack([l2_norms(tokens.patches).flatten() for tokens in layers]).cpu())
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


def _by_layer(norms: Mapping[str, Tensor], limits: list[float]) -> dict[str, list[float]]:
    """Residual stream after each block, and the norm of the mixer's output: its median, and that of its ratio to it."""
    names = ("norm_median", "norm_max", "outlier_share", "mixer_median", "mixer_ratio", "mixer_ratio_outliers")
    found: dict[str, list[float]] = {name: [] for name in names}
    for residual, mixer, limit in zip(norms["residual"], norms["mixer"], limits, strict=True):
        ratio = (mixer / residual).numpy()
        outliers = ratio[(residual > limit).numpy()]
        found["norm_median"].append(float(np.median(residual.numpy())))
        found["norm_max"].append(float(residual.max()))
        found["outlier_share"].append(len(outliers) / len(ratio))
        found["mixer_median"].append(float(np.median(mixer.numpy())))
        found["mixer_ratio"].append(float(np.median(ratio)))
        found["mixer_ratio_outliers"].append(float(np.median(outliers)) if len(outliers) else float("nan"))
    return found


def _variants(
    model: VisionMamba, limits: Mapping[str, list[float]], batches: Batches, not_run: dict[str, str], seed: int
) -> Iterator[tuple[str, float]]:
    """Top-1, and in points its change by changed tokens and added registers; outliers of the last layer.

    The threshold of these outliers is that of the trained network.
    """
    try:
        neurons = find_register_neurons(model, (images for images, _ in batches))
    except InputError as error:
        neurons, not_run["moved activations"] = None, str(error).rstrip(".")
    variants: dict[str, TokenModel] = {"as trained": model}
    for name, of_rule in limits.items():
        for change in CHANGES:
            variants[f"{name} {change}"] = ChangedOutliers(model, of_rule, change)
            control = ChangedOutliers(model, of_rule, change, random=True, seed=seed)
            variants[f"as many random tokens as {name} {change}"] = control
    for number in ADDED:
        variants |= register_variants(model, neurons, number)
    results = {found.name: found for found in evaluate_added_registers(variants, batches)}
    trained = results["as trained"]
    yield "top-1 as trained, %", 100 * trained.top1
    yield from (
        (f"top-1 change, {name}, points", 100 * (found.top1 - trained.top1))
        for name, found in results.items()
        if found is not trained
    )
    for name, found in results.items():
        yield f"outliers, last layer, {name}, % of tokens", 100 * found.outlier_share
        yield f"largest norm, last layer, {name}", found.maximum


def _background(
    analyzed: AnalyzedModel, cell: Cell, dataset: ImageDataset, context: Context, seed: int
) -> dict[str, float]:
    """Linear accuracy of the mean patch outside the boxes, and of the mean patch inside, as a share of it."""
    if object_mask(dataset[0]) is None:
        raise InputError("the images have no boxes or masks")
    recipe = cell.recipe
    train = open_dataset(recipe.data, "train", **recipe.data_options)
    scores = background_accuracy(
        analyzed, train, dataset, device=context.device, num_workers=context.num_workers, seed=seed
    )
    outside, inside = (scores[name].top1 for name in ("outside", "inside"))
    return {
        "linear accuracy of patches outside boxes, %": 100 * outside,
        "linear accuracy of patches inside boxes, %": 100 * inside,
        "outside / inside, %": 100 * outside / inside if inside else float("nan"),
    }
