"""A run that was interrupted loads, predicts and is evaluated from its best or last checkpoint."""

import logging
import shutil

import pytest
import torch

import mambar
from mambar.errors import CheckpointError, CheckpointMismatch
from mambar.hub.files import model_directory
from mambar.recipes.evaluate_run import evaluate_run
from mambar.training.checkpoint.store import CheckpointStore
from training import faults, runs


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was killed while it saved its fourth directory."""
    out = tmp_path_factory.mktemp("interrupted") / "run"
    assert runs.finish(runs.start(runs.tiny(), out, before=(faults.die_at, "save", 4))) == [-9]
    assert not (out / "config.json").exists()
    return out


def test_the_best_checkpoint_is_loaded_and_named(interrupted, caplog):
    model = mambar.load(interrupted)
    best = CheckpointStore(interrupted / "checkpoints").load_best()
    assert best is not None and best.path == model_directory(interrupted)
    assert all(torch.equal(tensor, best.tensors_of("model")[name]) for name, tensor in model.state_dict().items())
    assert len(model.classes) == 10 and model.preprocessing.img_size == 8
    assert f"has not finished; its best checkpoint is used: checkpoints/{best.path.name}" in caplog.text
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_evaluation_gives_the_value_that_made_it_the_best(interrupted):
    best = CheckpointStore(interrupted / "checkpoints").load_best()
    assert evaluate_run(interrupted).top1 == pytest.approx(best.scalars["value"])


def test_without_an_evaluation_the_last_checkpoint_is_used(interrupted, tmp_path, caplog):
    out = tmp_path / "run"
    shutil.copytree(interrupted, out)
    (out / "checkpoints" / "best.json").unlink()
    assert mambar.load(out).num_classes == 10
    assert "its last checkpoint is used: checkpoints/step-" in caplog.text


def test_an_interrupted_extension_leaves_the_weights_of_the_finished_run(tmp_path, caplog):
    out = tmp_path / "run"
    runs.here(runs.tiny(schedule="constant", epochs=1), out)
    caplog.clear()
    before = mambar.load(out).state_dict()
    assert not caplog.records
    extended = runs.tiny(schedule="constant", epochs=2)
    assert runs.finish(runs.start(extended, out, before=(faults.die_at, "save", 2), resume=True)) == [-9]
    after = mambar.load(out).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    last = CheckpointStore(out / "checkpoints").load().path
    assert f"model.safetensors from before is used. Newer weights: checkpoints/{last.name}." in caplog.text
    assert mambar.load(last).num_classes == 10
    runs.here(None, out, resume=True)
    caplog.clear()
    mambar.load(out)
    assert not caplog.records


def test_another_run_starts_from_it(interrupted, tmp_path):
    other = {"config.depth": 3, "max_steps": 1}
    recipe = runs.tiny(**other, start_from=str(interrupted))
    with pytest.raises(CheckpointMismatch, match=r"start_from=.*pretrained=\S+ in place of start_from takes"):
        runs.here(recipe, tmp_path / "refused")
    runs.here(runs.tiny(**other).from_pretrained(str(interrupted)), tmp_path / "run")
    assert mambar.load(tmp_path / "run").num_layers == 2


def test_a_checkpoint_directory_is_a_model_and_a_damaged_one_is_refused(interrupted, tmp_path):
    step = CheckpointStore(interrupted / "checkpoints").load().path
    assert mambar.load(step).num_classes == 10
    copy = tmp_path / step.name
    shutil.copytree(step, copy)
    data = bytearray((copy / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "state.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        mambar.load(copy)
