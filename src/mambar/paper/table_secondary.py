"""Secondary outcomes of Vim and Mamba-R that need no training: mixer norms, background, changed outliers, registers.

    mambar reproduce table_secondary --budget small --recipe tiny_imagenet data=PATH --seeds 0,1,2,3,4
    mambar reproduce table_secondary --budget small --runs VIM,MAMBAR data=PATH

The networks are those of table_artifacts; with --runs two trained ones, measured on all images of PATH. Outliers are
changed in every layer (`mambar.analysis.measure.token_changes`); registers are added as in `TestTimeRegisters`.
differences.md has Mamba-R - Vim by seed, layers.png and layers.json the mixer's output against the residual stream.
"""

from typing import Final

from mambar.analysis.analyzed_model import open_model
from mambar.analysis.draw.plots import png
from mambar.atomic_files import write_files
from mambar.hub.config_file import json_bytes
from mambar.json_fields import finite
from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.outcome_table import difference_files, measure_cells, outcome_results
from mambar.paper.outcomes import merged
from mambar.paper.pair import pair_cells, recipe_of_pair, trained_pair
from mambar.paper.plot import Layers, draw_layers
from mambar.paper.primary_outcomes import REFERENCE
from mambar.paper.secondary_outcomes import measure_secondary
from mambar.paper.sweep import Cell

TITLE: Final = "Mixer norms, background patches, changed outliers and test-time registers of Vim and Mamba-R"
CLAIMS: Final[tuple[Claim, ...]] = ()


def cells(context: Context) -> list[Cell]:
    """The two networks to train; none with --runs."""
    return [] if context.runs else pair_cells(context)


def measure(context: Context) -> list[Result]:
    """The outcomes of both networks."""
    recipe = recipe_of_pair(context)
    values: dict[tuple[str, str], dict[int, float]] = {}
    layers: dict[str, list[Layers]] = {}
    if context.runs:
        runs = trained_pair(context)
        for directory in runs.values():
            # A folder that is no model is named before minutes of measurements.
            open_model(directory)
        for row, directory in runs.items():
            content = measure_secondary(directory, Cell(row=row, recipe=recipe), recipe.seed, context)
            found = merged([finite(content)])
            values |= {(row, column): {recipe.seed: value} for column, value in found.columns.items()}
            layers[row] = [found.layers]
    else:
        values, layers = measure_cells(cells(context), context, ("secondary",))
    files = difference_files(values, REFERENCE) | {"layers.json": json_bytes({"format_version": 1, "rows": layers})}
    figure = draw_layers(layers, {}, data=recipe.data)
    if figure is not None:
        files["layers.png"] = png(figure, dpi=300)
    write_files(context.directory / context.name, files)
    return outcome_results(values, context, data=recipe.data)
