"""A user's table in one file outside `src`, measured by the command."""

import subprocess
import sys
from pathlib import Path

import pytest

from mambar.errors import InputError
from mambar.paper.index import reproduce

EXAMPLE = Path(__file__).parents[2] / "examples" / "extend" / "table.py"


def test_a_table_file_is_measured(tmp_path):
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, "-m", "mambar", "reproduce", str(EXAMPLE), "--device", "cpu", "--out", "results"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert "Multiply-adds at 224 pixels" in done.stdout and "99" in done.stdout
    assert (tmp_path / "results" / "smoke" / "table" / "table.md").is_file()


def test_a_file_without_a_table_is_one_line(tmp_path):
    file = tmp_path / "empty_table.py"
    file.write_text("TITLE = 'x'\n", "utf-8")
    with pytest.raises(InputError, match="has no CLAIMS, measure"):
        reproduce(str(file), out=tmp_path / "out")
