"""Every picture of the documents has an entry that says how it was made, and is the file that the entry is about."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image

from mambar.cli.main import app
from mambar.hub.weights import TRAINED

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
ENTRIES = json.loads((PICTURES / "pictures.json").read_text("utf-8"))


def test_every_picture_has_its_entry_and_is_shown():
    # An SVG file is its own source.
    pictures = {path.name for path in PICTURES.glob("*.png")}
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        name for page in documents for name in re.findall(r"\]\([^)]*pictures/([^)]+png)\)", page.read_text("utf-8"))
    }
    assert pictures == set(ENTRIES) == shown


def test_entries_are_complete_and_about_these_files():
    for name, entry in ENTRIES.items():
        assert all(entry[field].strip() for field in ("command", "commit", "date", "machine")), name
        assert re.match(r"[0-9a-f]{7}", entry["commit"]), name
        assert entry["sha256"] == hashlib.sha256((PICTURES / name).read_bytes()).hexdigest(), name


@pytest.mark.parametrize("name", ENTRIES)
def test_the_command_of_an_entry_is_whole(name):
    program, *words = shlex.split(ENTRIES[name]["command"])
    if program == "python":
        script, picture, *options = words
        assert (ROOT / script).samefile(ROOT / "benchmarks" / "pictures.py") and f"{picture}.png" == name
        assert options in ([], ["--work", "DIR"])
        return
    group: Any = typer.main.get_command(app)
    assert program == "mambar"
    verb = group.commands[words[0]]
    given = verb.make_context(verb.name, words[1:]).params
    assert all("=" in each for each in given.get("assignments") or ()), "a field or an option for each word"


def test_the_script_names_a_picture_without_an_entry(tmp_path):
    (tmp_path / "drawn.png").touch()
    script = ROOT / "benchmarks" / "pictures.py"
    done = subprocess.run(
        [sys.executable, str(script), "efficiency", "--out", str(tmp_path)], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 1 and "says how these were made: drawn.png" in done.stderr


def test_the_script_remakes_a_picture_and_its_entry(tmp_path):
    script = ROOT / "benchmarks" / "pictures.py"
    subprocess.run([sys.executable, str(script), "efficiency", "--out", str(tmp_path)], check=True, capture_output=True)
    entry = json.loads((tmp_path / "pictures.json").read_text("utf-8"))["efficiency.png"]
    assert entry["command"] == "python benchmarks/pictures.py efficiency" == ENTRIES["efficiency.png"]["command"]
    assert entry["sha256"] == hashlib.sha256((tmp_path / "efficiency.png").read_bytes()).hexdigest()


def test_the_script_takes_a_figure_of_the_trained_pair_that_is_there(tmp_path):
    names = ("vim_tiny_patch16_224.clothing", "mambar_tiny_patch16_224.clothing")
    pair = tmp_path / "-".join(["pair", *(TRAINED[name].sha256[:8] for name in names)])
    figure = pair / "small" / "table_secondary" / "layers.png"
    figure.parent.mkdir(parents=True)
    Image.new("RGB", (1200, 600), "red").save(figure)
    command = [sys.executable, str(ROOT / "benchmarks" / "pictures.py"), "clothing_layers"]
    options = ["--work", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run([*command, *options], capture_output=True, encoding="utf-8")
    assert "Error" not in done.stderr
    with Image.open(tmp_path / "clothing_layers.png") as drawn:
        assert drawn.size == (1000, 500) and drawn.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
