"""Which runs a grid has, where they lie, and what becomes of unfinished ones."""

import json
import time
from dataclasses import replace

import pytest

from mambar.errors import InputError
from mambar.paper import table_register_count, table_register_design
from mambar.paper.context import Context
from mambar.paper.sweep import Cell, directory_of, finished_results, planned_runs, seeds_of, train_cells


@pytest.fixture
def context(tmp_path):
    return Context(name="table", budget="small", out=tmp_path, data="digits", seeds=(0, 1, 2), other_seeds=1)


def finish(cell, seed, context, top1):
    directory = directory_of(cell, seed, context)
    directory.mkdir(parents=True)
    recipe = json.loads(cell.recipe.replace(seed=seed).to_json())
    (directory / "cell.json").write_text(json.dumps({"recipe": recipe, "metrics": {"top1": top1}}), "utf-8")


def test_rows_that_decide_get_all_seeds(context):
    counts = {cell.row: seeds_of(cell, context) for cell in table_register_count.cells(context)}
    others = {row: (0,) for row in ("n = 4", "n = 24", "n = 1 (Vim), output widened")}
    assert counts == {"n = 1 (Vim)": (0, 1, 2), "n = 12": (0, 1, 2), **others}
    everything = replace(context, other_seeds=None)
    assert {len(seeds_of(cell, everything)) for cell in table_register_count.cells(everything)} == {3}


def test_tables_share_the_runs_of_equal_recipes(context):
    counts = planned_runs(table_register_count.cells(context), context)
    designs = planned_runs(table_register_design.cells(context), context)
    assert len(counts) == 9 and len(designs) == 9
    assert len({**counts, **designs}) == 15
    # Most registers first: the longest sequences take longest.
    assert next(iter(counts.values())).recipe.config["num_registers"] == 24


def test_another_field_is_another_directory(context):
    cell = table_register_count.cells(context)[0]
    other = table_register_count.cells(replace(context, fields=("epochs=3",)))[0]
    assert other.recipe.stages[0].epochs == 3
    assert directory_of(cell, 0, context) != directory_of(other, 0, context)
    assert directory_of(cell, 0, context) != directory_of(cell, 1, context)
    assert "n1-middle-token" in directory_of(cell, 0, context).name


def test_only_finished_runs_are_in_the_table(context):
    chosen = table_register_count.cells(context)
    finish(chosen[0], 0, context, 0.5)
    finish(chosen[0], 2, context, 0.7)
    assert finished_results(chosen, context) == {"n = 1 (Vim)": {0: 50.0, 2: 70.0}}
    results = table_register_count.results(context, finished_results(chosen, context))
    assert [(r.row, r.values, r.provenance.seeds) for r in results] == [("n = 1 (Vim)", (50.0, 70.0), (0, 2))]


def test_past_the_deadline_nothing_is_started(context):
    late = replace(context, deadline=time.monotonic() - 1)
    assert train_cells(table_register_count.cells(late), late) == {}
    assert train_cells(table_register_count.cells(late), replace(late, jobs=2)) == {}
    assert not list(context.out.rglob("recipe.json"))


def test_paired_differences_use_common_seeds(context):
    chosen = {cell.row: cell for cell in table_register_design.cells(context)}
    for seed, top1 in enumerate((0.80, 0.81, 0.82)):
        finish(chosen[table_register_design.DEFAULT], seed, context, top1)
    for seed, top1 in ((1, 0.80), (2, 0.80)):
        finish(chosen["all in the middle"], seed, context, top1)
    finish(chosen["all at the beginning"], 0, context, 0.5)
    cells = list(chosen.values())
    found = {r.row: r for r in table_register_design.results(context, finished_results(cells, context))}
    assert "-1.50 ± 6.35 points from the default, not decided" in found["all in the middle"].note
    assert found["all at the beginning"].note == ""


def test_duplicate_rows_and_changed_recipes_are_refused(context):
    cell = table_register_count.cells(context)[0]
    with pytest.raises(InputError, match="same row name"):
        train_cells([cell, Cell(row=cell.row, recipe=cell.recipe.replace(lr=1.0))], context)
    finish(cell, 0, context, 0.5)
    path = directory_of(cell, 0, context) / "cell.json"
    path.write_text(path.read_text("utf-8").replace('"clip_grad": 1.0', '"clip_grad": 2.0'), "utf-8")
    with pytest.raises(InputError, match="another recipe"):
        finished_results([cell], context)
