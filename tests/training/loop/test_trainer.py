"""P4: a run that is killed and resumed at any time equals the uninterrupted run bit for bit."""

import multiprocessing
import random
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from mambar.data.loading import loaders
from mambar.training import train
from mambar.training.checkpoint.store import CheckpointStore
from training import faults, runs, saving

KILLS = [pytest.param(2, marks=pytest.mark.slow, id="few"), pytest.param(20, marks=pytest.mark.soak, id="many")]
PLACES = [("last.json", 3), ("prune", 1), ("evaluation", 15), ("epoch edge", 3)]


def run_to_the_end(out, *, befores=(), recipe=None, num_workers=0, most=40):
    """Starts and resumes a run until it finishes; returns the number of starts."""
    befores = list(befores)
    for attempt in range(most):
        before = befores.pop(0) if befores else None
        resumed = (out / "recipe.json").exists()
        process = runs.start(
            recipe or runs.tiny(), out, before=before, num_workers=num_workers, resume=resumed, log=out.parent / "log"
        )
        code = runs.finish(process)[0]
        if code == 0:
            return attempt + 1
        assert code == -signal.SIGKILL, (out.parent / "log").read_text("utf-8")
    raise AssertionError("the run never ended")


@pytest.mark.rel
@pytest.mark.parametrize("kills", KILLS)
def test_p4_kills_at_random_times_change_nothing(tmp_path, unbroken, kills, record_property):
    draw = random.Random(kills)
    killed = attempt = 0
    while killed < kills:
        attempt += 1
        out = tmp_path / f"run-{attempt}"
        # At most three kills per run, so that it finishes.
        for _ in range(min(3, kills - killed)):
            before = runs.steps_in(out)
            process = runs.start(
                runs.tiny(),
                out,
                before=(faults.slow_steps, 0.02),
                resume=(out / "recipe.json").exists(),
                num_workers=draw.choice([0, 0, 1]),
            )
            # Each attempt makes a few steps, otherwise the run never progresses.
            target = before + draw.randint(1, 4)
            while runs.steps_in(out) < target and process.exitcode is None:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.06))
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
        run_to_the_end(out)
        assert runs.trace(out) == unbroken
    record_property("kills", killed)
    record_property("runs", attempt)


@pytest.mark.rel
@pytest.mark.slow
@pytest.mark.parametrize("place, number", PLACES, ids=[place for place, _ in PLACES])
def test_p4_a_kill_at_a_chosen_place_changes_nothing(tmp_path, unbroken, place, number):
    out = tmp_path / "run"
    assert run_to_the_end(out, befores=[(faults.die_at, place, number)]) == 2, "the fault did not happen"
    assert runs.trace(out) == unbroken


@pytest.mark.rel
@pytest.mark.parametrize(
    "what", ["optimizer", *(pytest.param(what, marks=pytest.mark.slow) for what in ("ema", "best"))]
)
@pytest.mark.slow
def test_p4_a_resume_that_omits_state_is_detected(tmp_path, unbroken, what):
    out = tmp_path / "run"
    befores = [(faults.die_at, "save", 6), (faults.forget, what)]
    assert run_to_the_end(out, befores=befores) == 2
    assert runs.trace(out) != unbroken


@pytest.mark.rel
@pytest.mark.slow
def test_p4_workers_accumulation_and_repeats_do_not_change_the_result(tmp_path):
    recipe = runs.tiny(grad_accum_steps=4, aug_repeats=2, epochs=3)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_to_the_end(straight, recipe=recipe, num_workers=2) == 1
    assert run_to_the_end(broken, recipe=recipe, befores=[(faults.die_at, "save", 4)]) == 2
    assert runs.trace(straight) == runs.trace(broken)


@pytest.mark.rel
@pytest.mark.slow
def test_p4_every_sample_once_an_epoch_in_the_same_order(tmp_path):
    out, samples = tmp_path / "run", tmp_path / "samples"
    recording = (faults.record_samples, samples)
    befores = [(faults.all_of, recording, (faults.die_at, "save", 4)), recording]
    assert run_to_the_end(out, befores=befores) == 2
    seen, repeated = {}, 0
    for line in samples.read_text("utf-8").splitlines():
        epoch, step, shard, *numbers = map(int, line.split())
        repeated += (epoch, step, shard) in seen
        # Steps repeated after the resume use the same samples.
        assert seen.setdefault((epoch, step, shard), numbers) == numbers
    assert repeated > 0
    for epoch in range(3):
        counts = Counter(n for (e, _, _), numbers in seen.items() if e == epoch for n in numbers)
        assert len(counts) == 48 and set(counts.values()) == {1}


def test_training_workers_start_once_a_stage(tmp_path, monkeypatch):
    started = []

    class Counted(loaders.WorkerPool):
        def __init__(self, make, count):
            started.append((type(make).__name__, count))
            super().__init__(make, count)

    monkeypatch.setattr(loaders, "WorkerPool", Counted)
    # Three epochs, with evaluations between them.
    train(runs.tiny(), out=tmp_path / "run", device="cpu", num_workers=2)
    assert started.count(("_Training", 2)) == 1 and started.count(("_Evaluation", 2)) == 6
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_bit_of_a_run(tmp_path, unbroken):
    """Drop path and dropout use the same masks in the recomputed forward pass."""
    assert run_to_the_end(tmp_path / "run", recipe=runs.tiny(grad_checkpointing=True)) == 1
    assert runs.trace(tmp_path / "run") == unbroken


@pytest.mark.soak
def test_a_compiled_model_trains_the_same(tmp_path):
    """Without dropout, whose masks a compiled model draws differently; drop path keeps its masks."""
    losses = []
    for name, compiled in (("plain", False), ("compiled", True)):
        recipe = runs.tiny(compile=compiled, **{"config.proj_drop_rate": 0.0})
        assert run_to_the_end(tmp_path / name, recipe=recipe) == 1
        losses.append([row["loss"] for row in runs.read_rows(tmp_path / name) if row["kind"] == "training"])
    assert len(losses[0]) == 9 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def fill(disk: Path, left: int) -> Path:
    """Fills the disk up to this many free bytes."""
    file = disk / "filler"
    file.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return file


@pytest.mark.rel
@pytest.mark.slow
def test_p2_a_run_on_a_full_disk_exits_with_3_and_resumes_when_there_is_space(small_disk, unbroken):
    out = small_disk / "run"
    assert runs.finish(runs.start(runs.tiny(), out, before=(faults.die_at, "save", 4))) == [-signal.SIGKILL]
    filler = fill(small_disk, 100_000)
    before = runs.tree_hash(out / "checkpoints")
    assert runs.finish(runs.start(runs.tiny(), out, resume=True)) == [3]
    text = runs.error_of(out)
    assert "\n" not in text and re.search(r"/disk/run/checkpoints/\S+.*\d+ bytes.*No space left", text)
    # Temporary files of the killed run are removed at the start; checkpoints are unchanged.
    assert not saving.leftovers(out)
    assert CheckpointStore(out / "checkpoints").load().step == 2
    filler.unlink()
    assert before and runs.finish(runs.start(runs.tiny(), out, resume=True)) == [0]
    assert runs.trace(out) == unbroken


@pytest.mark.rel
@pytest.mark.slow
def test_p2_a_run_can_continue_without_checkpoints(small_disk):
    out, recipe = small_disk / "run", runs.tiny(on_save_error="continue")
    assert runs.finish(runs.start(recipe, out, before=(faults.die_at, "save", 4))) == [-signal.SIGKILL]
    fill(small_disk, 100_000)
    runs.finish(runs.start(recipe, out, resume=True))
    assert runs.steps_in(out) == 9 and CheckpointStore(out / "checkpoints").load().step == 2


@pytest.mark.rel
def test_p2_a_stop_tries_a_failed_save_again(tmp_path):
    """The message names a checkpoint that exists, although the save before the stop failed."""
    out, recipe = tmp_path / "run", runs.tiny(on_save_error="continue")
    assert runs.finish(runs.start(recipe, out, before=(faults.fail_writes, "checkpoint", 4, 3))) == [143]
    assert f"saved to {out}/checkpoints/step-00000004" in runs.error_of(out)
    assert CheckpointStore(out / "checkpoints").load().step == 4


@pytest.mark.rel
def test_p2_best_weights_that_were_not_saved_do_not_count_as_best(tmp_path):
    out, recipe = tmp_path / "run", runs.tiny(on_save_error="continue")
    before = (faults.all_of, (faults.scores, 0.9, 0.5, 0.4), (faults.fail_writes, "best", 3))
    assert runs.finish(runs.start(recipe, out, before=before)) == [0]
    store = CheckpointStore(out / "checkpoints")
    assert (store.load_best().step, store.load().scalars["progress"]["best"]) == (6, 0.5)


@pytest.mark.rel
@pytest.mark.slow
def test_p2_a_metrics_row_that_cannot_be_written_ends_all_ranks_with_its_error(tmp_path):
    out = tmp_path / "run"
    group = runs.start_group(runs.tiny(), out, world=2, befores={0: (faults.fail_writes, "metrics", 3)})
    assert runs.finish(*group) == [3, 3]
    assert runs.error_of(out, 1) == runs.error_of(out, 0)


@pytest.mark.rel
def test_p2_a_metrics_row_that_cannot_be_written_does_not_end_the_run(tmp_path):
    out, recipe = tmp_path / "run", runs.tiny(on_save_error="continue")
    assert runs.finish(runs.start(recipe, out, before=(faults.fail_writes, "metrics", 5))) == [0]
    assert [row["step"] for row in runs.read_rows(out) if row["kind"] == "training"] == [1, 2, 3, 4, 6, 7, 8, 9]


@pytest.mark.rel
def test_a_deleted_run_directory_is_one_error(tmp_path):
    out, recipe = tmp_path / "run", runs.tiny(on_save_error="continue")
    assert runs.finish(runs.start(recipe, out, before=(faults.delete_directory, out, 5))) == [3]
    assert re.fullmatch(r"\S+metrics.jsonl was deleted during the run; .*", runs.error_of(out))
    assert not out.exists()


@pytest.mark.slow
def test_three_stages_each_start_from_the_previous_one_and_resume_between_stages(tmp_path):
    import dataclasses

    one = runs.tiny().stages[0]
    recipe = dataclasses.replace(
        runs.tiny(),
        stages=(
            dataclasses.replace(one, name="first", epochs=1),
            dataclasses.replace(one, name="second", img_size=12, epochs=1, start_from="ema"),
            dataclasses.replace(one, name="third", img_size=12, epochs=1, ema_decay=None),
        ),
    )
    straight = tmp_path / "straight"
    assert run_to_the_end(straight, recipe=recipe) == 1
    expected = runs.trace(straight)
    steps = [row["step"] for row in expected.metrics if row["kind"] == "training"]
    assert steps == list(range(1, 10))
    assert [row["stage"] for row in expected.metrics if row["kind"] == "evaluation"] == [0, 1, 2]
    # Saves: steps 0, 2, best, 3 | 3, 4, …: the kill comes before, at and after the end of the first stage.
    for number in (4, 5, 6):
        out = tmp_path / f"broken-{number}"
        assert run_to_the_end(out, recipe=recipe, befores=[(faults.die_at, "save", number)]) == 2
        assert runs.trace(out) == expected, number
