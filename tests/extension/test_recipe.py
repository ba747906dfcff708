"""A user's recipe in one file outside `src`, trained by the command and resumed without the file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mambar.errors import InputError, RecipeError
from mambar.recipes import get_entry, get_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "extend" / "recipe.py"


def mambar(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "mambar", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=500,
        encoding="utf-8",
    )


def test_a_recipe_file_is_trained_and_resumed(tmp_path):
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 30
    file = shutil.copy(EXAMPLE, tmp_path / "recipe.py")
    done = mambar("train", file, "max_steps=2", "data_options.limit=64", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text("utf-8"))
    assert (stored["name"], stored["config"]["num_registers"]) == ("digits_12_registers", 12)
    again = mambar("train", file, "--resume", "run", cwd=tmp_path)
    assert again.returncode == 0 and "finished" in again.stderr, again.stderr
    Path(file).unlink()
    again = mambar("train", "--resume", "run", cwd=tmp_path)
    assert again.returncode == 0 and "finished" in again.stderr, again.stderr


def test_the_entry_of_a_recipe_file_is_shown(tmp_path):
    done = mambar("recipe", EXAMPLE, cwd=tmp_path)
    assert done.returncode == 0 and "12 registers on handwritten digits" in done.stdout


def test_a_file_with_a_recipe_alone_is_enough(tmp_path):
    file = tmp_path / "alone.py"
    file.write_text("from mambar.recipes import get_recipe\nRECIPE = get_recipe('digits').replace(lr=0.1)\n", "utf-8")
    assert get_recipe(str(file)).stages[0].lr == 0.1
    assert get_entry(str(file)).expected == "not run"


@pytest.mark.parametrize(
    "text, match",
    [
        ("x = 1", "has neither ENTRY nor RECIPE"),
        ("RECIPE = 3", "has neither ENTRY nor RECIPE"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("def", "cannot be imported: SyntaxError"),
        (None, "is not a Python file"),
    ],
)
def test_a_wrong_recipe_file_is_one_line(tmp_path, text, match):
    file = tmp_path / "wrong.py"
    if text is not None:
        file.write_text(text, "utf-8")
    with pytest.raises((RecipeError, InputError), match=match) as error:
        get_recipe(str(file))
    assert "\n" not in str(error.value) and error.value.exit_code == 2
