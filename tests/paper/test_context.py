"""What a result of a reproduction carries with it."""

import subprocess

from mambar.paper import context as module
from mambar.paper.context import Context
from mambar.version import __version__


def test_provenance_names_command_fields_and_seeds(tmp_path):
    here = Context(name="table_costs", budget="smoke", out=tmp_path, fields=("epochs=3", "lr=0.1"))
    found = here.provenance(data="digits", seeds=(0, 2))
    assert found.command == "mambar reproduce table_costs --budget smoke epochs=3 lr=0.1"
    assert found.seeds == (0, 2) and found.data == "digits" and found.machine and found.date


def test_without_git_the_version_stands_for_the_commit(monkeypatch):
    def missing(directory, *arguments):
        raise FileNotFoundError("git")

    monkeypatch.setattr(module, "_git", missing)
    assert module.commit() == f"version {__version__}"

    def no_repository(directory, *arguments):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(module, "_git", no_repository)
    assert module.commit() == f"version {__version__}"


def test_changes_are_marked(monkeypatch):
    monkeypatch.setattr(module, "_git", lambda directory, *words: "abc1234" if "rev-parse" in words else " M file")
    assert module.commit() == "abc1234 with changes"
    monkeypatch.setattr(module, "_git", lambda directory, *words: "abc1234" if "rev-parse" in words else "")
    assert module.commit() == "abc1234"


def test_the_command_names_recipe_and_runs(tmp_path):
    shared = {"name": "figure_norms", "budget": "small", "out": tmp_path}
    command = Context(**shared, runs=("a", "b")).provenance(data="d").command
    assert command == "mambar reproduce figure_norms --budget small --runs a,b"
    command = Context(**shared, recipe="tiny_imagenet", fields=("lr=0.1",)).provenance(data="d").command
    assert command == "mambar reproduce figure_norms --budget small --recipe tiny_imagenet lr=0.1"
