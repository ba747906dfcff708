"""Outliers, probes and accuracy of Vim and Mamba-R over several seeds.

    mambar reproduce table_artifacts --budget small data=PATH --seeds 0,1,2
    mambar reproduce table_artifacts --budget small data=PATH --seeds 0,1,2 \\
        data_options.canvas=64 img_size=64 config.patch_size=4

The paper shows single networks and images (arXiv 2405.14858). Norms are of image tokens in the residual stream of 400
validation images; an outlier is above median + 10 median absolute deviations of its layer. The second command pastes
images on larger plain canvases, whose background is known.
"""

import json
import logging
import math
from collections.abc import Iterator
from typing import Final

from mambar.analysis.analyze_model import AnalysisResult, analyze_model
from mambar.analysis.analyzed_model import open_model
from mambar.analysis.draw.plots import png
from mambar.analysis.images import sample_gallery
from mambar.analysis.options import AnalysisOptions
from mambar.atomic_files import write_atomically, write_files
from mambar.data.registry import open_dataset
from mambar.hub.config_file import json_bytes
from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.networks import base_recipe
from mambar.paper.pair import pair_cells
from mambar.paper.plot import draw_layers
from mambar.paper.sweep import Cell, directory_of, seeds_of, train_cells
from mambar.training.metrics_log import read_metrics

logger = logging.getLogger("mambar.paper")

TITLE: Final = "Artifacts of Vim (one register) and Mamba-R (several), by seed"
CLAIMS: Final[tuple[Claim, ...]] = ()
cells = pair_cells


def measure(context: Context) -> list[Result]:
    """Trains both networks with every seed and analyzes each finished one; earlier analyses are read."""
    chosen = cells(context)
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row, by_seed in train_cells(chosen, context).items():
        found[row, "top-1, %"] = by_seed
    for seed in context.seeds:
        for cell in chosen:
            if seed in found.get((cell.row, "top-1, %"), {}):
                for column, value in _artifact_columns(cell, seed, context).items():
                    found.setdefault((cell.row, column), {})[seed] = value
    _draw(chosen, context)
    data = base_recipe(context).data
    columns = list(dict.fromkeys(column for _, column in found))
    return [
        context.result(row, column, by_seed, data=data)
        for (row, column), by_seed in sorted(found.items(), key=lambda item: columns.index(item[0][1]))
    ]


def _draw(chosen: list[Cell], context: Context) -> None:
    """Writes layers.png: the layer statistics logged during training."""
    rows = {
        cell.row: [
            read_metrics(directory_of(cell, seed, context) / "metrics.jsonl") for seed in seeds_of(cell, context)
        ]
        for cell in chosen
    }
    figure = draw_layers(rows, data=f"{base_recipe(context).data}, training batches")
    if figure is not None:
        write_files(context.directory / context.name, {"layers.png": png(figure)})


def _artifact_columns(cell: Cell, seed: int, context: Context) -> dict[str, float]:
    """The defined columns of one run, stored beside its directory."""
    directory = directory_of(cell, seed, context)
    kept = directory.with_name(f"{directory.name}.artifacts.json")
    if kept.is_file():
        content: dict[str, float] = json.loads(kept.read_text("utf-8"))["columns"]
        # Version 0.1 wrote other names of the same columns.
        return {
            name.replace("longest", "highest-norm").replace("shortest", "lowest-norm"): content[name]
            for name in content
        }
    logger.info("Analyzing %s, seed %d.", cell.row, seed)
    options = AnalysisOptions(num_images=64 if context.budget == "smoke" else 400, gallery=1, test_time_registers=0)
    recipe = cell.recipe
    dataset = open_dataset(recipe.data, "val", **{**recipe.data_options, "limit": options.num_images})
    analyzed = open_model(directory, device=context.device)
    result = analyze_model(
        analyzed, dataset, sample_gallery(dataset, 1, seed=seed), options, num_workers=context.num_workers
    )
    columns = {column: value for column, value in _numbers(result) if math.isfinite(value)}
    write_atomically(kept, json_bytes({"format_version": 1, "num_images": options.num_images, "columns": columns}))
    return columns


def _numbers(result: AnalysisResult) -> Iterator[tuple[str, float]]:
    """The columns of one network and seed; undefined values are NaN."""
    by_deviation = result.outliers[0]
    first, last = by_deviation.layers[0], by_deviation.layers[-1]
    yield "median norm, first layer", first.median
    yield "median norm, last layer", last.median
    yield "largest norm / median, first layer", first.ratio
    yield "largest norm / median, last layer", last.ratio
    yield "outliers, first layer, % of tokens", 100 * first.share
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
    for group in () if result.local is None else result.local.groups:
        yield f"position of {group.group} predicted, %", 100 * group.position_accuracy
        yield f"pixels of {group.group} explained, %", 100 * group.explained
    for probe in result.probes:
        yield f"linear probe of {probe.name}, %", 100 * probe.accuracy
