"""Stored outcomes are read; missing ones are measured once."""

import importlib
import json
import shutil

import pytest

from mambar.paper import index, outcomes
from mambar.paper.context import Context
from mambar.paper.outcomes import measure_outcomes
from mambar.paper.pair import pair_cells
from mambar.paper.sweep import directory_of


def test_stored_outcomes_need_neither_run_nor_data(tmp_path):
    context = Context(name="table", budget="small", out=tmp_path, data="/nowhere")
    cell = pair_cells(context)[0]
    directory = directory_of(cell, 0, context)
    directory.parent.mkdir(parents=True)
    artifacts = {"columns": {"longest 5 %": 1.5, "undefined": None}, "layers": {"norm_max": [2.0, None]}}
    directory.with_name(f"{directory.name}.artifacts.json").write_text(json.dumps(artifacts), "utf-8")
    directory.with_name(f"{directory.name}.features.json").write_text(json.dumps({"columns": {"kNN": 2}}), "utf-8")
    found = measure_outcomes(cell, 0, context)
    assert found.columns == {"highest-norm 5 %": 1.5, "kNN": 2}
    assert found.layers == {"norm_max": [2.0, None]}


@pytest.mark.slow
def test_runs_of_another_machine_are_read_from_their_folders(tmp_path, monkeypatch):
    first = index.reproduce("table_artifacts", out=tmp_path / "there")
    shutil.copytree(tmp_path / "there" / "smoke" / "cells", tmp_path / "here" / "smoke" / "cells")

    def fail(*arguments, **options):
        raise AssertionError("something was computed again")

    monkeypatch.setattr(importlib.import_module("mambar.recipes.run"), "run", fail)
    monkeypatch.setattr(outcomes, "PARTS", dict.fromkeys(outcomes.PARTS, fail))
    again = index.reproduce("table_artifacts", out=tmp_path / "here")
    assert [result.values for result in again] == [result.values for result in first]
    written = tmp_path / "here" / "smoke" / "table_artifacts"
    assert (written / "table.html").is_file() and "| H1 | top-1, % |" in (written / "primary.md").read_text("utf-8")
    columns = {result.column for result in again}
    assert {"kNN accuracy of patches, %", "largest norm, last layer", "position of all predicted, %"} <= columns
