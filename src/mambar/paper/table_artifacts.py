"""Outliers, probes, frozen features and accuracy of Vim and Mamba-R over several seeds.

    mambar reproduce table_artifacts --budget small data=PATH --seeds 0,1,2
    mambar reproduce table_artifacts --budget small data=PATH --seeds 0,1,2 \\
        data_options.canvas=64 img_size=64 config.patch_size=4
    mambar reproduce table_artifacts --budget small --recipe tiny_imagenet data=PATH --seeds 0,1,2,3,4

The paper shows single networks and images (arXiv 2405.14858). Norms are of image tokens in the residual stream of 2,000
validation images; an outlier is above median + 10 median absolute deviations of its layer. The second command pastes
images on larger plain canvases, whose background is known. The third is the register study (docs/findings): primary.md
compares its primary outcomes, training.png and training.csv have the layers over training. Finished runs are read from
their folders, also without the data.
"""

from typing import Final

from mambar.atomic_files import write_files
from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.networks import base_recipe
from mambar.paper.outcome_table import layer_files, measure_cells, outcome_results
from mambar.paper.pair import pair_cells
from mambar.paper.primary_outcomes import primary_files

TITLE: Final = "Artifacts of Vim (one register) and Mamba-R (several), by seed"
CLAIMS: Final[tuple[Claim, ...]] = ()
cells = pair_cells


def measure(context: Context) -> list[Result]:
    """Trains both networks with every seed and measures each finished one; stored outcomes are read."""
    chosen, data = cells(context), base_recipe(context).data
    found, layers = measure_cells(chosen, context)
    files = primary_files(found) | layer_files(chosen, context, layers, data=data)
    write_files(context.directory / context.name, files)
    return outcome_results(found, context, data=data)
