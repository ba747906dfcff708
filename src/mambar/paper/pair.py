"""The two networks that the figures compare: Mamba-R, and the same network with one middle register (Vim)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mambar.analysis.numbers import Analysis
from mambar.analysis.options import AnalysisOptions
from mambar.errors import MambarError
from mambar.hub.config_file import CONFIG
from mambar.paper.claim import Result
from mambar.paper.context import Context
from mambar.paper.networks import VIM, base_recipe, registers, with_data, with_model
from mambar.paper.sweep import Cell, directory_of, train_cells
from mambar.training.checkpoint.recipe_file import RECIPE_NAME
from mambar.training.checkpoint.run_directory import read_located_recipe
from mambar.training.recipe import Recipe


def pair_cells(context: Context) -> list[Cell]:
    """The cells of both networks."""
    base = base_recipe(context)
    return [
        Cell(row="Vim", recipe=with_model(base, VIM)),
        Cell(row="Mamba-R", recipe=with_model(base, registers(context, base))),
    ]


def trained_pair(context: Context) -> dict[str, Path]:
    """The run directories of both networks: those of the context, or else trained with the first seed."""
    if context.runs:
        return dict(zip(("Vim", "Mamba-R"), map(Path, context.runs), strict=True))
    first = replace(context, seeds=context.seeds[:1])
    pair = pair_cells(first)
    train_cells(pair, first)
    found = {cell.row: directory_of(cell, first.seeds[0], first) for cell in pair}
    if not all((path / CONFIG).is_file() for path in found.values()):
        raise MambarError(f"{context.name}: the two networks are not finished; run again with more minutes.")
    return found


def analysed_pair(context: Context, **options: Any) -> Analysis:
    """The analysis of Vim and Mamba-R on the context's data, or else those of their training; writes its report."""
    from mambar.analysis.analyze import analyze

    runs = trained_pair(context)
    recipe = recipe_of_pair(context)
    out = _free(context.directory / context.name / f"analysis-seed{context.seeds[0]}")
    found = analyze(
        runs["Vim"],
        compare=runs["Mamba-R"],
        names=list(runs),
        data=recipe.data,
        data_options=dict(recipe.data_options),
        out=out,
        options=AnalysisOptions(seed=context.seeds[0], **{"test_time_registers": 0, **options}),
        device=context.device,
        num_workers=context.num_workers,
    )
    return found.analysis


def recipe_of_pair(context: Context) -> Recipe:
    """The recipe whose data and seed the figures have."""
    # A model directory without a recipe, such as those in `weights/`, needs the context's data.
    if not context.runs or not (Path(context.runs[0]).expanduser() / RECIPE_NAME).is_file():
        return base_recipe(context).replace(seed=context.seeds[0])
    recipe = read_located_recipe(context.runs[0])
    if context.data is not None:
        recipe = with_data(recipe, context).replace(data_options={})
    return recipe


def one_result(context: Context, row: str, column: str, value: float, note: str = "") -> Result:
    """A cell of a figure: one value, for the first seed."""
    recipe = recipe_of_pair(context)
    return context.result(row, column, {recipe.seed: value}, data=recipe.data, note=note)


def _free(directory: Path) -> Path:
    """The directory, or with a number appended if it exists."""
    number, free = 2, directory
    while free.exists():
        free = directory.with_name(f"{directory.name}-{number}")
        number += 1
    return free
