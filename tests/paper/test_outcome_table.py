"""Differences of rows by seed, and the layers over training."""

import json

import pytest

from mambar.paper.context import Context
from mambar.paper.outcome_table import difference_files, layer_files, outcome_results
from mambar.paper.pair import pair_cells
from mambar.paper.sweep import directory_of

VALUES = {
    ("Mamba-R", "top-1, %"): {0: 70.0, 1: 72.0, 2: 74.0},
    ("4 registers", "top-1, %"): {0: 71.0, 1: 74.0, 2: 77.0},
    ("Mamba-R", "norm"): {0: 5.0},
    ("4 registers", "norm"): {0: 4.0, 1: 9.0},
    ("one", "norm"): {7: 1.0},
}


def test_differences_are_paired_by_seed():
    files = difference_files(VALUES, "Mamba-R")
    # 1, 2, 3: mean 2, t = 4.303, deviation 1.
    assert (
        "| top-1, % | 4 registers | 74.00 ± 7.45 | +2.00 ± 2.48, not decided | 3 |" in files["differences.md"].decode()
    )
    assert "| norm | 4 registers | 6.50 ± 31.77 | -1.00, one seed | 1 |" in files["differences.md"].decode()
    assert "| norm | one | 1.00 | – | 0 |" in files["differences.md"].decode()
    content = json.loads(files["differences.json"])
    found = {(each["row"], each["column"]): each["difference"] for each in content["outcomes"]}
    assert found["Mamba-R", "top-1, %"] is None and content["reference"] == "Mamba-R"
    assert found["4 registers", "top-1, %"]["mean"] == pytest.approx(2.0)


def test_results_are_ordered_by_column(tmp_path):
    results = outcome_results(VALUES, Context(name="t", out=tmp_path, seeds=(0, 1, 2)), data="d")
    assert [result.column for result in results] == ["top-1, %"] * 2 + ["norm"] * 3
    assert results[0].values == (70.0, 72.0, 74.0) and results[-1].provenance.seeds == (7,)


def test_every_logged_layer_of_every_run_is_a_row(tmp_path):
    context = Context(name="t", budget="small", out=tmp_path, data="d", seeds=(3,))
    cells = pair_cells(context)
    directory = directory_of(cells[0], 3, context)
    directory.mkdir(parents=True)
    entry = {"norm_mean": [1.0, 2.0], "norm_max": [3.0, 4.0], "outlier_share": [0.0, 0.5]}
    rows = [{"kind": kind, "step": 10, **entry} for kind in ("training", "health")]
    lines = [json.dumps({"format_version": 1, **row}) for row in rows]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    files = layer_files(cells, context, {}, data="d")
    expected = [
        "row,seed,step,layer,norm_mean,norm_max,outlier_share",
        "Vim,3,10,0,1.0,3.0,0.0",
        "Vim,3,10,1,2.0,4.0,0.5",
    ]
    assert files["training.csv"].decode().splitlines() == expected
    assert set(files) == {"training.csv", "training.png", "layers.png"}
