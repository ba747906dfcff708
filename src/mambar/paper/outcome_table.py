"""Tables of outcomes: every row's accuracy and outcomes by seed, paired differences, and statistics by layer."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from mambar.analysis.draw.plots import png
from mambar.hub.config_file import json_bytes
from mambar.json_fields import finite
from mambar.paper.claim import Result
from mambar.paper.context import Context
from mambar.paper.outcomes import PRIMARY_PARTS, measure_outcomes
from mambar.paper.plot import Layers, draw_layers, draw_training
from mambar.paper.statistics import half_width, paired
from mambar.paper.sweep import Cell, directory_of, seeds_of, train_cells
from mambar.training.metrics_log import read_metrics

TOP1: Final = "top-1, %"
_LOGGED: Final = ("norm_mean", "norm_max", "outlier_share")
# (row, column) → seed → value.
Values = Mapping[tuple[str, str], Mapping[int, float]]


def measure_cells(
    cells: Sequence[Cell], context: Context, parts: Sequence[str] = PRIMARY_PARTS
) -> tuple[dict[tuple[str, str], dict[int, float]], dict[str, list[Layers]]]:
    """Trains the cells; the accuracy and outcomes of finished runs, and the statistics by layer of each row's runs."""
    found = {(row, TOP1): by_seed for row, by_seed in train_cells(cells, context).items()}
    layers: dict[str, list[Layers]] = {cell.row: [] for cell in cells}
    for seed in context.seeds:
        for cell in cells:
            if seed in found.get((cell.row, TOP1), {}):
                outcomes = measure_outcomes(cell, seed, context, parts)
                layers[cell.row].append(outcomes.layers)
                for column, value in outcomes.columns.items():
                    found.setdefault((cell.row, column), {})[seed] = value
    return found, layers


def outcome_results(values: Values, context: Context, *, data: str) -> list[Result]:
    """The results of a table, column by column."""
    columns = list(dict.fromkeys(column for _, column in values))
    ordered = sorted(values.items(), key=lambda item: columns.index(item[0][1]))
    return [context.result(row, column, by_seed, data=data) for (row, column), by_seed in ordered]


def difference_files(values: Values, reference: str) -> dict[str, bytes]:
    """differences.json and differences.md: each row minus the row `reference`, paired by seed, with 95 % intervals."""
    lines = [f"| outcome | row | mean | minus {reference}, same seeds | pairs |", "|---|---|---|---|---|"]
    content: list[dict[str, Any]] = []
    columns = dict.fromkeys(column for _, column in values)
    for column, row in ((column, row) for column in columns for row, own in values if own == column):
        own, other = values[row, column], values.get((reference, column), {})
        common = [] if row == reference else [seed for seed in own if seed in other]
        difference = paired([own[seed] for seed in common], [other[seed] for seed in common])
        text = "–"
        if difference is not None:
            text = difference.text()
        elif common:
            text = f"{own[common[0]] - other[common[0]]:+.2f}, one seed"
        width = half_width(list(own.values()))
        mean = f"{math.fsum(own.values()) / len(own):.2f}" + ("" if width is None else f" ± {width:.2f}")
        lines.append(f"| {column} | {row} | {mean} | {text} | {len(common)} |")
        found = None if difference is None else asdict(difference)
        content.append({"column": column, "row": row, "values": dict(own), "difference": found})
    document = {"format_version": 1, "reference": reference, "outcomes": finite(content)}
    return {"differences.json": json_bytes(document), "differences.md": ("\n".join(lines) + "\n").encode()}


def layer_files(
    cells: Sequence[Cell], context: Context, layers: Mapping[str, Sequence[Layers]], *, data: str
) -> dict[str, bytes]:
    """layers.png, and from the logs of the runs training.png and training.csv: the layers over training."""
    training = {
        cell.row: {
            seed: read_metrics(directory_of(cell, seed, context) / "metrics.jsonl") for seed in seeds_of(cell, context)
        }
        for cell in cells
    }
    logs = {row: list(by_seed.values()) for row, by_seed in training.items()}
    figures = {"layers.png": draw_layers(layers, logs, data=data), "training.png": draw_training(logs, data=data)}
    files = {name: png(figure, dpi=300) for name, figure in figures.items() if figure is not None}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "seed", "step", "layer", *_LOGGED])
    for row, by_seed in training.items():
        for seed, logged in by_seed.items():
            for entry in logged:
                if entry["kind"] == "health":
                    columns = zip(*(entry[name] for name in _LOGGED), strict=True)
                    writer.writerows([row, seed, entry["step"], layer, *each] for layer, each in enumerate(columns))
    return {**files, "training.csv": text.getvalue().encode()}
