"""Outliers, probes, frozen features and accuracy of Vim and Mamba-R over several seeds.

    mambar reproduce table_artifacts --budget small data=PATH --seeds 0,1,2
    mambar reproduce table_artifacts --budget small data=PATH --seeds 0,1,2 \\
        data_options.canvas=64 img_size=64 config.patch_size=4
    mambar reproduce table_artifacts --budget small --recipe tiny_imagenet data=PATH --seeds 0,1,2,3,4

The paper shows single networks and images (arXiv 2405.14858). Norms are of image tokens in the residual stream of 2,000
validation images; an outlier is above median + 10 median absolute deviations of its layer. The second command pastes
images on larger plain canvases, whose background is known. The third is the register study (docs/findings): primary.md
compares its primary outcomes. Finished runs are read from their folders, also without the data.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from mambar.analysis.draw.plots import png
from mambar.atomic_files import write_files
from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.networks import base_recipe
from mambar.paper.outcomes import measure_outcomes
from mambar.paper.pair import pair_cells
from mambar.paper.plot import draw_layers
from mambar.paper.primary_outcomes import primary_files
from mambar.paper.sweep import directory_of, seeds_of, train_cells
from mambar.training.metrics_log import read_metrics

TITLE: Final = "Artifacts of Vim (one register) and Mamba-R (several), by seed"
CLAIMS: Final[tuple[Claim, ...]] = ()
cells = pair_cells


def measure(context: Context) -> list[Result]:
    """Trains both networks with every seed and measures each finished one; stored outcomes are read."""
    chosen = cells(context)
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row, by_seed in train_cells(chosen, context).items():
        found[row, "top-1, %"] = by_seed
    layers: dict[str, list[Mapping[str, Sequence[float | None]]]] = {cell.row: [] for cell in chosen}
    for seed in context.seeds:
        for cell in chosen:
            if seed in found.get((cell.row, "top-1, %"), {}):
                outcomes = measure_outcomes(cell, seed, context)
                layers[cell.row].append(outcomes.layers)
                for column, value in outcomes.columns.items():
                    found.setdefault((cell.row, column), {})[seed] = value
    files = primary_files(found)
    training = {
        cell.row: [
            read_metrics(directory_of(cell, seed, context) / "metrics.jsonl") for seed in seeds_of(cell, context)
        ]
        for cell in chosen
    }
    figure = draw_layers(layers, training, data=base_recipe(context).data)
    if figure is not None:
        files["layers.png"] = png(figure, dpi=300)
    write_files(context.directory / context.name, files)
    data = base_recipe(context).data
    columns = list(dict.fromkeys(column for _, column in found))
    return [
        context.result(row, column, by_seed, data=data)
        for (row, column), by_seed in sorted(found.items(), key=lambda item: columns.index(item[0][1]))
    ]
