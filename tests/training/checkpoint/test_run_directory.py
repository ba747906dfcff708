"""P8: nothing is overwritten by surprise. Each case also counts the bytes that changed: none."""

import json
import os
import shutil
import signal
import time

import pytest

from mambar.errors import CheckpointError, DataError, InputError, RecipeError
from mambar.training.checkpoint.recipe_file import RecipeFile
from mambar.training.checkpoint.run_directory import open_run_directory, read_recipe
from training import faults, runs


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Skips the report, which is not tested here and takes longer than these runs."""
    monkeypatch.setattr("mambar.training.task.Task.report", lambda *arguments, **named: None)


@pytest.fixture
def old(tmp_path):
    """A directory with something in it."""
    out = tmp_path / "old"
    out.mkdir()
    RecipeFile.of(runs.tiny()).write(out)
    (out / "model.safetensors").write_bytes(b"precious")
    (out / "metrics.jsonl").write_text("{}\n", "utf-8")
    return out


def refused(out, error, match, **options):
    before = runs.tree_hash(out)
    with pytest.raises(error, match=match) as caught:
        open_run_directory(out, options.pop("recipe", runs.tiny()), resume=options.pop("resume", False), **options)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert runs.tree_hash(out) == before


@pytest.mark.rel
@pytest.mark.parametrize("change", ["a byte", "a new file", "a removed file", "another link"])
def test_p8_tree_hash_detects_every_change(old, change):
    (old / "link").symlink_to("model.safetensors")
    before = runs.tree_hash(old)
    if change == "a byte":
        (old / "model.safetensors").write_bytes(b"Precious")
    elif change == "a new file":
        (old / "x").touch()
    elif change == "a removed file":
        (old / "metrics.jsonl").unlink()
    else:
        (old / "link").unlink()
        (old / "link").symlink_to("recipe.json")
    assert runs.tree_hash(old) != before


@pytest.mark.rel
@pytest.mark.parametrize("name", ["x", "recipe.json", "notes.txt", ".hidden", "checkpoints/step-00000001/state.json"])
def test_p8_an_output_that_is_not_empty_is_refused(tmp_path, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("precious", "utf-8")
    refused(out, InputError, "is not empty.*--resume")


@pytest.mark.rel
def test_p8_an_output_that_is_a_file_or_a_link_is_refused(tmp_path, old):
    file = tmp_path / "file"
    file.write_text("precious", "utf-8")
    with pytest.raises(InputError, match="not a directory"):
        open_run_directory(file, runs.tiny(), resume=False)
    assert file.read_text("utf-8") == "precious"
    link = tmp_path / "link"
    link.symlink_to(old)
    refused(link, InputError, "links are not followed")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="links are not followed"):
        open_run_directory(dangling, runs.tiny(), resume=False)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.rel
def test_p8_a_link_in_place_of_a_file_is_replaced_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("precious", "utf-8")
    out = tmp_path / "run"
    open_run_directory(out, runs.tiny(), resume=False).release()
    (out / "metrics.jsonl").symlink_to(target)
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "last.json.tmp.1").symlink_to(target)
    runs.here(runs.tiny(epochs=0), out, resume=True)
    assert target.read_text("utf-8") == "precious"
    assert not (out / "metrics.jsonl").is_symlink()


@pytest.mark.rel
@pytest.mark.parametrize(
    "changes, names",
    [
        ({"lr": 0.5}, ["stages.0.lr 0.002 → 0.5"]),
        ({"seed": 8}, ["seed 7 → 8"]),
        ({"drop_path_rate": 0.3, "num_shards": 4}, ["stages.0.drop_path_rate", "num_shards"]),
        ({"config.embed_dim": 32}, ["config.embed_dim 16 → 32"]),
        ({"data_options.limit": 40}, ["data_options.limit"]),
        ({"precision": "fp64"}, ["precision"]),
    ],
)
def test_p8_resuming_with_a_changed_recipe_lists_the_changes(old, changes, names):
    for name in names:
        refused(old, RecipeError, name.replace(".", r"\."), recipe=runs.tiny(**changes), resume=True)


@pytest.mark.rel
@pytest.mark.parametrize("changes", [{"epochs": 9}, {"save_every": 1}, {"keep_checkpoints": 5}, {"log_every": 2}])
def test_p8_changeable_fields_may_change_on_resume(old, changes):
    directory = open_run_directory(old, runs.tiny(**changes), resume=True)
    directory.record_changes()
    assert directory.recipe == runs.tiny(**changes) == read_recipe(old)
    directory.release()


@pytest.mark.rel
def test_p8_other_fields_change_only_with_override(old):
    directory = open_run_directory(old, runs.tiny(lr=0.5), resume=True, override=["lr"])
    assert directory.recipe.stages[0].lr == 0.5
    directory.release()


def test_resuming_where_there_is_no_run_is_exit_2(tmp_path):
    with pytest.raises(InputError, match=r"holds no recipe\.json"):
        open_run_directory(tmp_path, None, resume=True)
    with pytest.raises(InputError, match=r"holds no recipe\.json"):
        open_run_directory(tmp_path / "nowhere", None, resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_recipe_of_a_newer_version_is_refused(old):
    plain = json.loads((old / "recipe.json").read_text("utf-8"))
    (old / "recipe.json").write_text(json.dumps({**plain, "format_version": 99}), "utf-8")
    refused(old, RecipeError, "format_version 99", recipe=None, resume=True)


@pytest.mark.rel
@pytest.mark.slow
def test_p8_two_runs_in_one_directory_the_second_is_refused(tmp_path):
    out = tmp_path / "run"
    process = runs.start(runs.tiny(), out, before=(faults.slow_steps, 0.5))
    while not (out / "metrics.jsonl").exists():
        time.sleep(0.01)
    second = runs.start(runs.tiny(), out, resume=True)
    assert runs.finish(second) == [2]
    assert f"another run uses {out} (process {process.pid})" in runs.error_of(out)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # The lock was released with its process.
    open_run_directory(out, None, resume=True).release()


@pytest.mark.rel
def test_p8_child_processes_do_not_inherit_the_lock(tmp_path):
    """The negative control: a lock that children inherit would still be held after the run was killed."""
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "run"
    directory = open_run_directory(out, runs.tiny(), resume=False)
    child = os.fork()
    if child == 0:
        os.close(0)
        time.sleep(30)
        os._exit(0)
    directory.release()
    with (out / ".lock").open("r+", encoding="utf-8") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_directory_left_before_its_recipe_was_written_is_used(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    (out / "recipe.json.tmp.1").touch()
    open_run_directory(out, runs.tiny(), resume=False).release()
    assert read_recipe(out) == runs.tiny()


@pytest.mark.rel
def test_p8_a_finished_run_returns_its_result_and_changes_nothing(tmp_path):
    out = tmp_path / "run"
    first = runs.here(runs.tiny(epochs=1), out)
    before = runs.tree_hash(out)
    again = runs.here(None, out, resume=True)
    assert again.already_finished and again.metrics == first.metrics
    assert runs.tree_hash(out) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished runs of one epoch by their schedule."""
    found = {schedule: tmp_path_factory.mktemp("finished") / schedule for schedule in ("cosine", "constant")}
    started = [runs.start(runs.tiny(schedule=schedule, epochs=1), out) for schedule, out in found.items()]
    assert runs.finish(*started) == [0, 0]
    return found


def test_a_finished_run_with_a_constant_rate_is_extended_to_an_unbroken_one(finished, tmp_path):
    out, unbroken = shutil.copytree(finished["constant"], tmp_path / "run"), tmp_path / "unbroken"
    recipe = runs.tiny(schedule="constant", epochs=2)
    assert not runs.here(recipe, out, resume=True).already_finished
    assert runs.here(None, out, resume=True).already_finished
    runs.here(recipe, unbroken)
    found, expected = runs.trace(out), runs.trace(unbroken)
    assert (found.tensors, found.model, found.metrics) == (expected.tensors, expected.model, expected.metrics)


@pytest.mark.parametrize(
    "schedule, changes, message",
    [
        ("cosine", {"epochs": 2}, r"cosine learning rate has reached its end; epochs=2 .*start_from=\S+ epochs=N"),
        ("cosine", {"save_every": 1}, "is finished; save_every=1 would have no effect.*Start a new run"),
        ("constant", {"save_every": 1}, "is finished; save_every=1 would have no effect"),
        ("constant", {"epochs": 0}, "has done 3 steps; epochs=0 would end it after 0"),
        ("constant", {"max_steps": 9}, "max_steps=9 would have no effect: the stage has 3 steps"),
        ("constant", {"epochs": 4, "warmup_epochs": 3.0}, "with 9 steps of warm-up"),
    ],
)
def test_a_field_that_a_finished_run_cannot_follow_is_refused(finished, schedule, changes, message):
    out = finished[schedule]
    # Writes the number of this process to .lock.
    runs.here(None, out, resume=True)
    before = runs.tree_hash(out)
    recipe = runs.tiny(**{"schedule": schedule, "epochs": 1, **changes})
    with pytest.raises(RecipeError, match=message):
        runs.here(recipe, out, resume=True, override=["warmup_epochs"])
    assert runs.tree_hash(out) == before
    assert runs.here(None, out, resume=True).already_finished


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epochs": 1}, "has done 4 steps; epochs=1 would end it after 3"),
        ({"max_steps": 90}, "max_steps=90 would have no effect"),
        ({"start_from": "elsewhere"}, "is in stage 0; start_from=elsewhere would have no effect"),
    ],
)
def test_a_field_that_comes_too_late_is_refused_and_not_recorded(tmp_path, changes, message):
    out = tmp_path / "run"
    assert runs.finish(runs.start(runs.tiny(), out, before=(faults.die_at, "save", 5))) == [-signal.SIGKILL]
    stored = (out / "recipe.json").read_bytes()
    with pytest.raises(RecipeError, match=message):
        runs.here(runs.tiny(**changes), out, resume=True, override=["start_from"])
    assert (out / "recipe.json").read_bytes() == stored


@pytest.mark.rel
def test_p8_other_data_than_at_the_start_are_refused(tmp_path):
    out = tmp_path / "run"
    assert runs.finish(runs.start(runs.tiny(), out, before=(faults.die_at, "save", 3))) == [-signal.SIGKILL]
    moved = runs.tiny(**{"data_options.limit": 40})
    with pytest.raises(DataError, match="the train data differ"):
        runs.here(moved, out, resume=True, override=["data_options.limit"])


@pytest.mark.rel
def test_p8_a_nan_metric_survives_a_checkpoint_and_is_not_best(tmp_path):
    from mambar.training.loop.context import TrainingProgress

    progress = TrainingProgress(metrics={"top1": float("nan")})
    restored = TrainingProgress()
    restored.update({"progress": json.loads(json.dumps(progress.to_dict(), allow_nan=False))})
    assert restored.metrics["top1"] != restored.metrics["top1"] and restored.best is None


@pytest.mark.rel
@pytest.mark.slow
def test_p8_best_after_a_resume_is_still_the_best(tmp_path, unbroken):
    """The official code resets the best score on resume, so a worse model overwrites the best."""
    from mambar.training.checkpoint.store import CheckpointStore

    out = tmp_path / "run"
    befores = [
        (faults.all_of, (faults.scores, 0.9, 0.5, 0.9), (faults.die_at, "last.json", 4)),
        (faults.scores, 0.5, 0.9),
    ]
    assert runs.finish(runs.start(runs.tiny(), out, before=befores[0])) == [-signal.SIGKILL]
    assert runs.finish(runs.start(runs.tiny(), out, before=befores[1], resume=True)) == [0]
    best = CheckpointStore(out / "checkpoints").load_best()
    # 0.9 came first at step 3; 0.5 is worse and 0.9 only ties.
    assert (best.step, best.scalars["value"]) == (3, 0.9)


def test_a_damaged_result_is_one_line(tmp_path):
    out = tmp_path / "run"
    runs.here(runs.tiny(epochs=0), out)
    (out / "result.json").write_text("{", "utf-8")
    with pytest.raises(CheckpointError, match=r"result\.json is damaged"):
        runs.here(None, out, resume=True)
