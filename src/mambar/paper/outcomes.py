"""Outcomes of a trained network: artifacts and frozen features, stored beside its run directory.

A part that is stored is read, so that a run of another machine needs neither its data nor a GPU.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mambar.analysis.analyze_model import AnalysisResult, analyze_model
from mambar.analysis.analyzed_model import open_model
from mambar.analysis.images import sample_gallery
from mambar.analysis.measure.object_discovery import LostOptions
from mambar.analysis.options import AnalysisOptions
from mambar.atomic_files import write_atomically
from mambar.data.registry import open_dataset
from mambar.hub.config_file import json_bytes
from mambar.json_fields import finite
from mambar.paper.context import Context
from mambar.paper.secondary_outcomes import measure_secondary
from mambar.paper.sweep import Cell, directory_of
from mambar.recipes.frozen_features import evaluate_frozen_features

logger = logging.getLogger("mambar.paper")

# Parts of `PARTS` with the primary outcomes of the register study.
PRIMARY_PARTS: Final = ("artifacts", "features")
# Validation images of the analysis.
NUM_IMAGES: Final = 2000
# Features of `mambar evaluate --protocol`, with their name in tables.
_FEATURES: Final = {
    "avg": "patches",
    "register_mean": "registers",
    "registers": "concatenated registers",
}
_NEIGHBORS: Final = 20
# Version 0.1 wrote other names of the same columns.
_OLD_NAMES: Final = {"longest": "highest-norm", "shortest": "lowest-norm"}


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """The outcomes of one run.

    Attributes:
        columns: Column of the table → value; undefined values are left out.
        layers: Name of a statistic → one value for each layer, None if undefined.
    """

    columns: Mapping[str, float]
    layers: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


def measure_outcomes(cell: Cell, seed: int, context: Context, parts: Sequence[str] = PRIMARY_PARTS) -> Outcomes:
    """The outcomes of one finished run; parts that are not stored are computed on the context's device.

    `parts` are keys of `PARTS`: features are fast on a GPU, artifacts need mostly the CPU.
    """
    directory = directory_of(cell, seed, context)
    contents = []
    for part in parts:
        path = directory.with_name(f"{directory.name}.{part}.json")
        if not path.is_file():
            logger.info("%s of %s, seed %d.", part.capitalize(), cell.row, seed)
            content = finite({"format_version": 2, **PARTS[part](directory, cell, seed, context)})
            write_atomically(path, json_bytes(content))
        contents.append(json.loads(path.read_text("utf-8")))
    return merged(contents)


def merged(contents: Sequence[Mapping[str, Any]]) -> Outcomes:
    """The outcomes of several parts together; undefined columns are left out."""
    columns: dict[str, float] = {}
    layers: dict[str, Sequence[float | None]] = {}
    for content in contents:
        for name, value in content["columns"].items():
            for old, new in _OLD_NAMES.items():
                name = name.replace(old, new)
            if value is not None:
                columns[name] = value
        layers |= content.get("layers", {})
    return Outcomes(columns=columns, layers=layers)


def _artifacts(directory: Path, cell: Cell, seed: int, context: Context) -> dict[str, Any]:
    count = 64 if context.budget == "smoke" else NUM_IMAGES
    options = AnalysisOptions(
        num_images=count, max_maps=count, gallery=1, test_time_registers=0, discover=LostOptions()
    )
    recipe = cell.recipe
    dataset = open_dataset(recipe.data, "val", **{**recipe.data_options, "limit": count})
    result = analyze_model(
        open_model(directory, device=context.device),
        dataset,
        sample_gallery(dataset, 1, seed=seed),
        options,
        num_workers=context.num_workers,
    )
    return {"num_images": count, "columns": dict(_artifact_columns(result)), "layers": _by_layer(result)}


def _artifact_columns(result: AnalysisResult) -> Iterator[tuple[str, float]]:
    """The columns of one network and seed; undefined values are NaN."""
    layers = result.outliers[0].layers
    first, last = layers[0], layers[-1]
    yield "median norm, first layer", first.median
    yield "median norm, last layer", last.median
    yield "largest norm, last layer", last.maximum
    yield "largest norm / median, first layer", first.ratio
    yield "largest norm / median, last layer", last.ratio
    yield "outliers, first layer, % of tokens", 100 * first.share
    upper = layers[2 * len(layers) // 3 : -1]
    if upper:
        # 16 to 22 of 24.
        yield "outliers, upper layers, % of tokens", 100 * math.fsum(layer.share for layer in upper) / len(upper)
    yield "outliers, last layer, % of tokens", 100 * last.share
    if result.ground_truth:
        there = result.ground_truth[0].layers[-1]
        yield "outliers on background, last layer, %", 100 * there.outlier_background
        yield "background, % of pixels", 100 * there.background
        yield (
            "highest-norm 5 % on background, last layer, %",
            100 * result.ground_truth[2].layers[-1].outlier_background,
        )
        yield "ROC-AUC of the norm for background, last layer", there.auc
    if result.discovery is not None:
        *measured, baseline = result.discovery.layers
        yield "CorLoc of LOST, last layer, %", 100 * measured[-1].corloc
        yield "CorLoc of the whole image, %", 100 * baseline.corloc
    for group in () if result.local is None else result.local.groups:
        yield f"position of {group.group} predicted, %", 100 * group.position_accuracy
        yield f"pixels of {group.group} explained, %", 100 * group.explained
    for probe in result.probes:
        yield f"linear probe of {probe.name}, %", 100 * probe.accuracy


def _by_layer(result: AnalysisResult) -> dict[str, list[float]]:
    layers = result.outliers[0].layers
    found = {
        "norm_median": [layer.median for layer in layers],
        "norm_max": [layer.maximum for layer in layers],
        "outlier_share": [layer.share for layer in layers],
    }
    if result.ground_truth:
        found["outlier_background"] = [layer.outlier_background for layer in result.ground_truth[0].layers]
    return found


def _features(directory: Path, cell: Cell, seed: int, context: Context) -> dict[str, Any]:
    recipe = cell.recipe
    result = evaluate_frozen_features(
        directory,
        protocols=("linear", "knn"),
        features=tuple(_FEATURES),
        data=recipe.data,
        data_options=recipe.data_options,
        batch_size=256,
        device=context.device,
        num_workers=context.num_workers,
    )
    assert result is not None  # None on other processes only.
    columns = {}
    for score in result.scores:
        if score.protocol == "linear":
            columns[f"linear accuracy of {_FEATURES[score.features]}, %"] = 100 * score.top1
        elif score.setting == _NEIGHBORS:
            columns[f"kNN accuracy of {_FEATURES[score.features]}, %"] = 100 * score.top1
    return {"num_train": result.num_train, "columns": columns, "scores": result.to_dict()["scores"]}


PARTS: Final[Mapping[str, Callable[[Path, Cell, int, Context], dict[str, Any]]]] = {
    "artifacts": _artifacts,
    "features": _features,
    "secondary": measure_secondary,
}
