"""Semantic segmentation with UPerNet (arXiv 2405.14858, the table on ADE20K: mIoU, one scale).

    mambar reproduce table_ade20k --budget full data=ADEChallengeData2016
    mambar reproduce table_ade20k --budget small --seeds 0,1,2      synthetic scenes, Mamba-R and Vim

Full trains the three published sizes from the released weights with the published recipe (160,000 iterations each).
Smoke and small train UPerNet from random weights on synthetic scenes, whose classes differ from ADE20K's.
"""

from typing import Final

from mambar.errors import InputError
from mambar.paper.claim import Claim, Known, Result
from mambar.paper.context import Context
from mambar.paper.networks import VIM, with_data, with_model
from mambar.paper.sweep import Cell, Table
from mambar.recipes.upernet_ade20k import LARGE_RECIPE, RECIPE, SMALL_RECIPE
from mambar.recipes.upernet_shapes import RECIPE as SCENES

TITLE: Final = "UPerNet on ADE20K (mIoU)"
COLUMN: Final = "mIoU, %"


def _claim(row: str, value: float, known: Known = "read") -> Claim:
    source = "arXiv 2405.14858, the edition was not noted"
    return Claim(row=row, column=COLUMN, value=value, version="edition not noted", source=source, known=known)


CLAIMS: Final = (
    _claim("Vim Small", 44.9, "recalled"),
    _claim("Mamba-R Small", 45.3, "recalled"),
    _claim("DeiT Base", 45.5, "derived"),
    _claim("Mamba-R Base", 47.7),
    _claim("Mamba-R Large", 49.1),
)
_FULL: Final = {"Mamba-R Small": SMALL_RECIPE, "Mamba-R Base": RECIPE, "Mamba-R Large": LARGE_RECIPE}


def cells(context: Context) -> list[Cell]:
    """The published sizes (full), or Mamba-R and Vim on scenes."""
    if context.budget == "full":
        if context.data is None:
            raise InputError("The budget full needs data=PATH of ADE20K (the folder, or the downloaded .zip).")
        return [
            Cell(row=row, recipe=with_data(recipe, context).with_overrides(context.fields))
            for row, recipe in _FULL.items()
        ]
    scenes = SCENES if context.data is None else with_data(SCENES, context).replace(data_options={})
    if context.budget == "smoke":
        scenes = with_model(scenes, {"embed_dim": 16, "depth": 4}).replace(epochs=1, max_steps=3, warmup_steps=1)
        scenes = scenes.replace(**{"data_options.num_images": 48, "data_options.val_limit": 4})
    scenes = scenes.with_overrides(context.fields)
    return [
        Cell(row="Mamba-R, scenes", recipe=scenes),
        Cell(row="Vim (one register), scenes", recipe=with_model(scenes, VIM)),
    ]


def results(context: Context, table: Table) -> list[Result]:
    """The rows with finished runs."""
    return context.results(COLUMN, table, data=cells(context)[0].recipe.data)
