"""Files that decide what is computed: one changed bit, another run's file and a hand edit are refused."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from mambar.errors import CheckpointError, InputError, MambarError
from mambar.json_fields import check_format_version
from mambar.training.checkpoint.recipe_file import RecipeFile, read_recipe_file
from mambar.training.checkpoint.run_directory import open_run_directory, read_recipe
from mambar.training.checkpoint.store import CheckpointStore
from training import faults, runs, saving

OLD_RUN = Path(__file__).parents[2] / "data" / "run_0.1.0"


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("mambar.training.task.Task.report", lambda *arguments, **named: None)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was killed after its checkpoint at step 4."""
    out = tmp_path_factory.mktemp("interrupted") / "run"
    assert runs.finish(runs.start(runs.tiny(), out, before=(faults.die_at, "save", 4))) == [-signal.SIGKILL]
    return out


@pytest.fixture
def run(interrupted, tmp_path):
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def refused(match, function, *arguments, **named):
    with pytest.raises(MambarError, match=match) as caught:
        function(*arguments, **named)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def edit(out, old, new):
    file = out / "recipe.json"
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


def test_a_learning_rate_changed_by_one_bit_is_refused(run):
    edit(run, '"lr": 0.002', '"lr": 0.006')
    before = runs.tree_hash(run)
    refused("was edited or is damaged", runs.here, None, run, resume=True)
    assert runs.tree_hash(run) == before


@pytest.mark.parametrize("name", ["recipe.json", "result.json", "checkpoints/last.json", "checkpoints/best.json"])
def test_every_flipped_bit_is_refused(tmp_path, name):
    out = tmp_path / "run"
    runs.here(runs.tiny(epochs=1), out)
    file, draw = out / name, random.Random(4)
    good = file.read_bytes()
    for _ in range(60):
        position, bit = draw.randrange(len(good)), draw.randrange(8)
        file.write_bytes(good[:position] + bytes([good[position] ^ (1 << bit)]) + good[position + 1 :])
        if name == "checkpoints/best.json":
            with pytest.raises(CheckpointError):
                CheckpointStore(out / "checkpoints").load_best()
        elif name == "checkpoints/last.json":
            # The checkpoints are intact; the pointer is refused.
            with pytest.raises(CheckpointError):
                CheckpointStore(out / "checkpoints")._read_pointer("last.json")
        else:
            with pytest.raises(InputError):
                runs.here(None, out, resume=True)
    file.write_bytes(good)
    assert runs.here(None, out, resume=True).already_finished


@pytest.mark.parametrize("changes", [{"seed": 8}, {"lr": 0.006}])
def test_a_checkpoint_of_another_run_is_refused(run, tmp_path, changes):
    other = tmp_path / "other"
    other_run = runs.start(runs.tiny(**changes), other, before=(faults.die_at, "save", 4))
    assert runs.finish(other_run) == [-signal.SIGKILL]
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    refused("checkpoint of another run", runs.here, None, run, resume=True)


def test_a_best_checkpoint_of_another_run_is_refused(tmp_path):
    CheckpointStore(tmp_path, recipe_sha256=("a" * 64,)).save_best(3, saving.tensors_of(3), {"value": 1.0})
    assert CheckpointStore(tmp_path, recipe_sha256=("b" * 64, "a" * 64)).load_best() is not None
    refused("another run", CheckpointStore(tmp_path, recipe_sha256=("b" * 64,)).load_best)


def test_a_result_of_another_run_is_refused(tmp_path):
    for name, seed in (("one", 7), ("two", 8)):
        runs.here(runs.tiny(epochs=1, seed=seed), tmp_path / name)
    shutil.copy(tmp_path / "two" / "result.json", tmp_path / "one" / "result.json")
    refused("another recipe", runs.here, None, tmp_path / "one", resume=True)


def test_an_edit_by_hand_is_taken_with_an_option_and_recorded(run):
    edit(run, '"lr": 0.002', '"lr": 0.006')
    result = runs.here(None, run, resume=True, accept_edited_recipe=True)
    assert result.recipe.stages[0].lr == 0.006
    stored = read_recipe_file(run)
    assert [change["option"] for change in stored.changes] == ["--accept-edited-recipe"]
    assert runs.here(None, run, resume=True).already_finished


def test_a_changed_field_is_taken_with_override_and_recorded(run):
    runs.here(runs.tiny(lr=0.006), run, resume=True, override=["lr"])
    (change,) = read_recipe_file(run).changes
    assert change["fields"] == {"stages.0.lr": [0.002, 0.006]} and "--override lr" in change["option"]
    assert change["previous"] == RecipeFile.of(runs.tiny()).sha256
    assert runs.here(None, run, resume=True).already_finished


@pytest.mark.parametrize(
    "old, new, match",
    [
        ('"seed": 7,', "", "no field 'seed'"),
        ('"seed": 7,', '"seed": 7, "seed": 8,', "'seed' twice"),
        ('"format_version": 3', '"format_version": 0', "format_version 0"),
        ('"format_version": 3', '"format_version": -5', "format_version -5"),
        ('"format_version": 3', '"format_version": true', "format_version True"),
    ],
)
def test_a_recipe_with_missing_repeated_or_unversioned_fields_is_refused(run, old, new, match):
    edit(run, old, new)
    for accept in (False, True):
        refused(match, open_run_directory, run, None, resume=True, accept_edited_recipe=accept)


@pytest.mark.parametrize("version", [0, -5, True, None, "1", 1.0])
def test_an_invalid_format_version_is_refused(version):
    with pytest.raises(CheckpointError, match="format_version"):
        check_format_version(version, Path("x"), newest=2)


def test_a_run_directory_of_version_0_1_0_is_finished_and_resumes(tmp_path):
    """Its files have no checksum of the recipe. Without its result it is resumed from its last checkpoint."""
    out = Path(shutil.copytree(OLD_RUN, tmp_path / "run"))
    recipe = read_recipe(out)
    assert (recipe.seed, recipe.stages[0].lr, recipe.stages[0].img_size, recipe.num_shards) == (3, 0.002, 8, 1)
    assert dict(recipe.config)["embed_dim"] == 16 and dict(recipe.config)["d_state"] == 4
    before = (out / "recipe.json").read_bytes()
    finished = runs.here(None, out, resume=True)
    assert finished.already_finished and (out / "recipe.json").read_bytes() == before
    store = CheckpointStore(out / "checkpoints", recipe_sha256=RecipeFile.of(recipe).accepted_sha256)
    assert store.load().step == 4 and store.load_best().step == 4
    (out / "result.json").unlink()
    again = runs.here(None, out, resume=True)
    assert again.metrics["top1"] == finished.metrics["top1"] and not again.already_finished


def test_a_change_of_a_0_1_0_run_is_recorded(tmp_path):
    out = Path(shutil.copytree(OLD_RUN, tmp_path / "run"))
    (out / "result.json").unlink()
    stored = read_recipe(out)
    runs.here(stored.replace(max_steps=5), out, resume=True)
    document = json.loads((out / "recipe.json").read_text("utf-8"))
    assert document["changes"][0]["fields"] == {"stages.0.max_steps": [4, 5]} and document["format_version"] == 3
    assert runs.here(None, out, resume=True).already_finished
