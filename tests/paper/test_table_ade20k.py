"""The segmentation table: published sizes at full, scenes below; its metric is mIoU."""

import json

import pytest

from mambar.errors import InputError
from mambar.paper import table_ade20k
from mambar.paper.context import Context
from mambar.paper.render import render
from mambar.paper.sweep import directory_of, finished_results


def context(tmp_path, **fields):
    return Context(name="table_ade20k", out=tmp_path, **fields)


def test_full_is_the_published_recipe_on_the_named_data(tmp_path):
    cells = table_ade20k.cells(context(tmp_path, budget="full", data="/ade"))
    assert [cell.row for cell in cells] == ["Mamba-R Small", "Mamba-R Base", "Mamba-R Large"]
    assert {cell.row for cell in cells} < {claim.row for claim in table_ade20k.CLAIMS}
    assert all(cell.recipe.data == "/ade" and cell.recipe.stages[0].max_steps == 160_000 for cell in cells)
    with pytest.raises(InputError, match="needs data=PATH of ADE20K"):
        table_ade20k.cells(context(tmp_path, budget="full"))


def test_scenes_never_stand_in_a_published_row(tmp_path):
    here = context(tmp_path, budget="small")
    cells = table_ade20k.cells(here)
    assert not {cell.row for cell in cells} & {claim.row for claim in table_ade20k.CLAIMS}
    directory = directory_of(cells[0], 0, here)
    directory.mkdir(parents=True)
    content = {"recipe": json.loads(cells[0].recipe.to_json()), "metrics": {"miou": 0.5, "pixel_accuracy": 0.9}}
    (directory / "cell.json").write_text(json.dumps(content), "utf-8")
    results = table_ade20k.results(here, finished_results(cells, here))
    assert [(result.row, result.values) for result in results] == [("Mamba-R, scenes", (50.0,))]
    lines = render(table_ade20k.CLAIMS, results).splitlines()
    base = next(line for line in lines if line.startswith("| Mamba-R Base"))
    assert base.count("not run") == 2 and "50" not in base
