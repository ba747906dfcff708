"""A task registered from outside the package trains, resumes and is split over processes like the built-in ones."""

import runpy
from pathlib import Path

import pytest
from safetensors.torch import load_file

from training import faults, runs

EXAMPLE = Path(__file__).parents[2] / "examples" / "extend" / "task.py"
# Runs the example's definitions, in this process or in one that a test starts.
DEFINE = (runpy.run_path, str(EXAMPLE))


def recipe(**changes):
    return runs.tiny(task="byol", mixup=0.0, cutmix=0.0, label_smoothing=0.0, **changes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("byol") / "run"
    assert runs.finish(runs.start(recipe(), out, before=DEFINE)) == [0]
    return out


def test_a_self_supervised_task_trains_and_logs_its_scalars(straight):
    rows = [row for row in runs.read_rows(straight) if row["kind"] == "training"]
    assert len(rows) == 9 and all("accuracy" not in row for row in rows)
    assert all(row["similarity"] == pytest.approx(1 - row["loss"], abs=1e-5) for row in rows)
    assert (straight / "report.html").exists()
    # The backbone is saved, without the predictor and the teacher.
    assert not [name for name in load_file(straight / "model.safetensors") if "teacher" in name or "predictor" in name]
    tensors = runs.trace(straight).tensors
    assert any(name.startswith("model.teacher.") for name in tensors)
    assert not any(name.startswith("optimizer.teacher.") for name in tensors)


@pytest.mark.rel
def test_a_killed_run_resumes_bit_identically_with_its_teacher(straight, tmp_path):
    out = tmp_path / "run"
    kill = (faults.all_of, DEFINE, (faults.die_at, "save", 4))
    assert runs.finish(runs.start(recipe(), out, before=kill)) == [-9]
    assert runs.finish(runs.start(recipe(), out, before=DEFINE, resume=True)) == [0]
    assert runs.trace(out) == runs.trace(straight)


@pytest.mark.rel
def test_two_processes_equal_one(straight, tmp_path):
    out = tmp_path / "run"
    group = runs.start_group(recipe(), out, world=2, befores={0: DEFINE, 1: DEFINE})
    assert runs.finish(*group) == [0, 0]
    assert runs.trace(out) == runs.trace(straight)


def test_the_example_is_one_screen():
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 60
