"""The demo's report says which network its parts are about, and shows the errors that it counts."""

import re

import pytest

from mambar.recipes.demo import run_demo


@pytest.mark.slow
def test_errors_of_the_matrix_are_shown_with_the_name_of_their_network(tmp_path):
    fields = ["epochs=1", "max_steps=30", "config.embed_dim=16", "config.depth=2"]
    result = run_demo(out=tmp_path / "demo", fields=fields)
    assert (result.report.parent / "token_norms.png").read_bytes().startswith(b"\x89PNG")
    report = result.report.read_text("utf-8")
    right, total = re.search(r"Mamba-R, 4 registers: (\d+) of (\d+) validation images correct", report).groups()
    wrong, errors = re.search(r"Mamba-R, 4 registers: (\d+) of (\d+) misclassified validation images", report).groups()
    assert int(errors) == int(total) - int(right) > 0
    assert int(wrong) == min(8, int(errors)) == report.count('class="example wrong"')
    assert "input: 8 × 8 px" in report and "input: 56 × 56 px" in report
