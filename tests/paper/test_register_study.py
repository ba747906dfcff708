"""The stored outcomes of the register study, and the pages that show them."""

import re
import shutil
from pathlib import Path

import pytest

from mambar.paper import table_artifacts
from mambar.paper.context import Context

FINDINGS = Path(__file__).parents[2] / "docs" / "findings"


@pytest.fixture(scope="module")
def remade(tmp_path_factory):
    """The tables that the documented command writes from the stored outcomes."""
    out = tmp_path_factory.mktemp("study") / "runs"
    shutil.copytree(FINDINGS / "registers", out)
    seeds = {int(folder.name.rpartition("seed")[2]) for folder in (out / "small" / "cells").glob("*-seed*/")}
    context = Context(
        name="table_artifacts",
        budget="small",
        recipe="tiny_imagenet",
        data="tiny-imagenet-200",
        out=out,
        seeds=tuple(sorted(seeds)),
    )
    results = table_artifacts.measure(context)
    return context, results


def test_the_page_has_the_table_of_the_stored_outcomes(remade):
    context, _ = remade
    table, verdicts = (context.directory / context.name / "primary.md").read_text("utf-8").split("\n\n")
    page = (FINDINGS / "registers.md").read_text("utf-8")
    assert table in page
    # No hypothesis is decided before all planned seeds are there.
    assert set(re.findall(r"H\d: (\w+)", verdicts)) == {"incomplete"} and "**Not decided yet.**" in page


def test_the_second_page_has_every_value_of_every_seed(remade):
    _, results = remade
    page = (FINDINGS / "registers_seeds.md").read_text("utf-8")
    for seed in results[0].provenance.seeds:
        section = page.partition(f"## All values, seed {seed}\n")[2].partition("\n## ")[0]
        shown = {}
        for line in section.splitlines():
            if line.startswith("| ") and "---" not in line:
                column, vim, mambar_r = (cell.strip() for cell in line.strip("|").split("|"))
                shown |= {("Vim", column): vim, ("Mamba-R", column): mambar_r}
        for result in results:
            value = dict(zip(result.provenance.seeds, result.values, strict=True))[seed]
            assert float(shown[result.row, result.column]) == pytest.approx(value, rel=1e-3), result.column
