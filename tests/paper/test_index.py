"""Every table and figure runs at smoke; a sweep goes on where it stopped."""

import importlib
import json

import pytest

from mambar.errors import InputError
from mambar.paper import ablations, figures, index
from mambar.paper.ablations import ABLATIONS
from mambar.paper.claim import Claim
from mambar.paper.render import render


def test_every_name_is_documented_and_has_claims():
    for name in index.names():
        table = index.module(name)
        module = {**dict.fromkeys(figures.FIGURES, figures), **dict.fromkeys(ABLATIONS, ablations)}.get(name, table)
        document = module.__doc__
        assert document and f"mambar reproduce {name}" in document
        assert table.TITLE and all(isinstance(claim, Claim) for claim in table.CLAIMS)


def test_wrong_names_and_missing_data(tmp_path):
    with pytest.raises(InputError, match="did you mean 'table_imagenet'"):
        index.reproduce("table_imagnet", out=tmp_path)
    with pytest.raises(InputError, match="budget small needs data=PATH"):
        index.reproduce("table_register_count", budget="small", out=tmp_path)
    with pytest.raises(InputError, match="without repetition"):
        index.reproduce("table_register_count", seeds=(1, 1), out=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_register_count_smoke_and_resume(tmp_path, monkeypatch):
    results = index.reproduce("table_register_count", out=tmp_path, seeds=(0, 1))
    assert [result.row for result in results] == ["n = 1 (Vim)", "n = 4", "n = 1 (Vim), output widened"]
    assert all(result.budget == "smoke" and len(result.values) == 2 for result in results)
    directory = tmp_path / "smoke" / "table_register_count"
    assert index.read(directory) == results
    table = (directory / "table.md").read_text("utf-8")
    assert "not run" in table and "smoke (not comparable)" in table and "commit" in table

    def run(*arguments, **options):
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(importlib.import_module("mambar.recipes.run"), "run", run)
    again = index.reproduce("table_register_count", out=tmp_path, seeds=(0, 1))
    assert [result.values for result in again] == [result.values for result in results]
    cell = next((tmp_path / "smoke" / "cells").glob("*/cell.json"))
    content = json.loads(cell.read_text("utf-8"))
    content["recipe"]["stages"][0]["lr"] = 1.0
    cell.write_text(json.dumps(content), "utf-8")
    with pytest.raises(InputError, match="another recipe"):
        index.reproduce("table_register_count", out=tmp_path, seeds=(0, 1))


# One of the ablations; they share their code.
ABLATIONS_IN_SOAK = ("ablation_registers", "ablation_training")
FIGURES_IN_SOAK = ("figure_feature_maps", "figure_probes", "figure_register_maps")


@pytest.mark.soak
def test_tables_side_by_side_share_runs_and_give_the_same_numbers(tmp_path):
    one = index.reproduce("table_register_count", out=tmp_path / "one")
    names = ("table_register_count", "table_register_design")
    two = index.reproduce_together(names, out=tmp_path / "two", jobs=2)
    values = [[result.values for result in found] for found in (one, two["table_register_count"])]
    assert values[0] == values[1]
    # Two counts, the control and three designs, one of which is the larger count.
    assert len(list((tmp_path / "two" / "smoke" / "cells").glob("*/cell.json"))) == 5
    default = two["table_register_design"][0]
    assert default.values == two["table_register_count"][1].values


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    # One of the four figures; they share their analysis.
    [
        pytest.param(name, marks=pytest.mark.soak) if name in FIGURES_IN_SOAK + ABLATIONS_IN_SOAK else name
        for name in index.NAMES
        # These two run in other tests.
        if name not in ("table_register_count", "table_artifacts")
    ],
)
def test_smoke(name, tmp_path):
    results = index.reproduce(name, out=tmp_path)
    assert results
    table = index.module(name)
    assert render(table.CLAIMS, results)
    assert (tmp_path / "smoke" / name / "table.html").is_file()
