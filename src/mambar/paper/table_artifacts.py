"""Do the artifacts appear, and do registers reduce them? Both networks under several seeds, in numbers.

    mambar reproduce table_artifacts budget=small data=PATH seeds=0,1,2
    mambar reproduce table_artifacts budget=small data=PATH seeds=0,1,2 \\
        data_options.canvas=64 image_size=64 config.patch_size=4

Beyond the paper, which shows single networks and images (arXiv 2405.14858). Norms are of image tokens in the residual
stream of 1,000 validation images; an outlier lies above median + 10 median absolute deviations of its layer. On
canvases (the second command pastes images on larger plain ones) it is known where the background is.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from mambar.analysis.study import Study
from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.networks import base_recipe
from mambar.paper.pair import analysed_pair, pair_cells
from mambar.paper.sweep import recorded, train_cells

TITLE: Final = "Artifacts of Vim (one register) and Mamba-R (several), by seed"
CLAIMS: Final[tuple[Claim, ...]] = ()
cells = pair_cells


def measure(context: Context) -> list[Result]:
    """Trains both networks with every seed and looks into each finished pair."""
    train_cells(cells(context), context)
    table = recorded(cells(context), context)
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row, by_seed in table.items():
        found[row, "top-1, %"] = by_seed
    both = [seed for seed in context.seeds if all(seed in table.get(cell.row, {}) for cell in cells(context))]
    for seed in both:
        one = replace(context, seeds=(seed,))
        analysis = analysed_pair(one, probes=("ridge",), num_images=200 if context.budget == "smoke" else 1000)
        for row, study in zip(("Vim", "Mamba-R"), analysis.studies.values(), strict=True):
            for column, value in _numbers(study):
                if math.isfinite(value):
                    found.setdefault((row, column), {})[seed] = value
    data = base_recipe(context).data
    columns = list(dict.fromkeys(column for _, column in found))
    return [
        Result(
            row=row,
            column=column,
            budget=context.budget,
            values=tuple(by_seed.values()),
            provenance=context.provenance(data=data, seeds=tuple(by_seed)),
        )
        for (row, column), by_seed in sorted(found.items(), key=lambda item: columns.index(item[0][1]))
    ]


def _numbers(study: Study) -> Iterator[tuple[str, float]]:
    """The columns of one network under one seed; what is undefined is NaN."""
    by_deviation = study.outliers[0]
    first, last = by_deviation.layers[0], by_deviation.layers[-1]
    yield "median norm, first layer", first.median
    yield "median norm, last layer", last.median
    yield "largest norm / median, first layer", first.ratio
    yield "largest norm / median, last layer", last.ratio
    yield "outliers, first layer, % of tokens", 100 * first.share
    yield "outliers, last layer, % of tokens", 100 * last.share
    if study.truth:
        there = study.truth[0].layers[-1]
        yield "outliers on background, last layer, %", 100 * there.outlier_background
        yield "background, % of pixels", 100 * there.background
        yield "longest 5 % on background, last layer, %", 100 * study.truth[2].layers[-1].outlier_background
        yield "ROC-AUC of the norm for background, last layer", there.auc
    for probe in study.probes:
        yield f"linear probe of {probe.name}, %", 100 * probe.accuracy
