"""Closed streams, streams with a narrow encoding, and paths relative to another directory or to the home directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.pictures import encoded, photo
from mambar.training.checkpoint.recipe_file import RecipeFile, read_recipe_file
from mambar.training.recipe import Recipe, Stage

CLASSES = ("naïve", "猫")
FIELDS = ("epochs=1", "max_steps=1", "batch_size=4", "img_size=16", "config.depth=1", "config.patch_size=8")
OPTIONS = ("--device=cpu", "--num-workers=0")
NARROW = {"PYTHONIOENCODING": "latin-1"}


def mambar(where: Path, *arguments: str, redirect: str = "", **environment: str):
    """Runs the command in `where`, with shell redirections such as `2>&-`."""
    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-m", "mambar", *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of images whose class names ASCII lacks, and a run trained on it by a relative path."""
    place = tmp_path_factory.mktemp("streams")
    for name in CLASSES:
        (place / "photos" / name).mkdir(parents=True)
        for index in range(6):
            (place / "photos" / name / f"{index}.jpg").write_bytes(encoded(photo(20, 24, seed=index)))
    done = mambar(place, "train", "folder", "data=photos", *FIELDS, "--out=run", *OPTIONS, redirect="2>&- >&-")
    assert done.returncode == 0
    return place


@pytest.mark.slow
def test_training_needs_neither_stdout_nor_stderr(place):
    assert (place / "run" / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_names_that_stdout_cannot_encode_are_replaced(place, command):
    arguments = [command, "run", *(["photos/猫/0.jpg"] if command == "predict" else []), "--device=cpu"]
    shown = mambar(place, *arguments, **NARROW)
    assert shown.returncode == 0 and "naïve".encode("latin-1") in shown.stdout and b"?" in shown.stdout, shown.stderr
    written = mambar(place, *arguments, "--json", **NARROW)
    assert written.returncode == 0 and written.stdout.isascii()
    # JSON escapes, so that a program gets the names back.
    assert set(CLASSES) <= set(json.dumps(json.loads(written.stdout), ensure_ascii=False).replace('"', " ").split())


@pytest.mark.slow
def test_a_relative_path_of_the_data_is_found_from_another_directory(place, tmp_path):
    done = mambar(tmp_path, "evaluate", str(place / "run"), "--device=cpu")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_home_directory_is_expanded_in_fields_and_options(place, tmp_path):
    arguments = ["train", "folder", "data=~/photos", *FIELDS, "--out=~/again", *OPTIONS]
    done = mambar(tmp_path, *arguments, HOME=str(place))
    assert done.returncode == 0 and (place / "again" / "result.json").is_file(), done.stderr


def test_recipe_json_keeps_what_was_typed_and_the_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(name="x", model="vim_tiny_patch16_224", data="a,b", stages=(Stage(),))
    RecipeFile.of(recipe).write(tmp_path)
    stored = read_recipe_file(tmp_path)
    assert stored.recipe == recipe and stored.paths == {"data": str(tmp_path / "a,b")}
    assert stored.located() == recipe
    monkeypatch.chdir("/")
    assert stored.located().data == str(tmp_path / "a,b")


def test_keywords_and_names_of_datasets_are_no_paths(tmp_path, monkeypatch):
    """Also where a folder has such a name, as `weights` in a checkout."""
    monkeypatch.chdir(tmp_path)
    for name in ("weights", "ema", "digits", "mosaics"):
        (tmp_path / name).mkdir()
    stages = tuple(Stage(name=name, start_from=name) for name in ("weights", "ema"))
    for data in ("digits", "mosaics"):
        recipe = Recipe(name="r", model="mambar_tiny_patch16_224", data=data, stages=stages)
        assert RecipeFile.of(recipe).paths == {}
        # Files of earlier versions have them.
        recorded = RecipeFile(recipe=recipe, sha256="", paths={"data": "/x", "stages.1.start_from": "/x"})
        monkeypatch.chdir("/")
        assert recorded.located() == recipe
        monkeypatch.chdir(tmp_path)
    # A run may be called as a dataset, and data as a keyword.
    recipe = Recipe(name="r", model="mambar_tiny_patch16_224", data="ema", stages=(Stage(start_from="digits"),))
    named = RecipeFile.of(recipe)
    assert named.paths == {"data": str(tmp_path / "ema"), "stages.0.start_from": str(tmp_path / "digits")}
    monkeypatch.chdir("/")
    assert named.located() == recipe.replace(**named.paths)


def test_an_error_says_where_it_looked(tmp_path):
    for arguments in (("predict", "nowhere", "x.png"), ("train", "folder", "data=nowhere")):
        done = mambar(tmp_path, *arguments)
        assert done.returncode == 2 and f"looked in {tmp_path}".encode() in done.stderr
