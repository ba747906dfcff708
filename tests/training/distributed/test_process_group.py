"""P5: the number of processes does not matter. P6: a dead process ends or restarts the run, never corrupts it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mambar.errors import InputError
from mambar.training.distributed.process_group import ProcessGroup
from training import faults, runs, saving


def test_shards_go_round_robin():
    assert [list(ProcessGroup(rank=rank, world_size=2).local_shards(6)) for rank in (0, 1)] == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(InputError, match=r"num_shards=3 cannot be divided among 2 processes.*shards=2"):
        ProcessGroup(rank=0, world_size=2).local_shards(3)


def test_peak_memory_grows_with_allocated_memory():
    before = ProcessGroup().peak_memory
    taken = torch.ones(100 * 2**20, dtype=torch.uint8)
    after = ProcessGroup().peak_memory
    # An earlier peak may have been higher.
    assert after >= before > 0.05 and after * 2**30 > taken.numel()


@pytest.mark.rel
@pytest.mark.slow
def test_p5_two_shards_on_one_and_two_processes_have_the_same_bits(tmp_path, unbroken):
    listed = (runs.report_misclassified,)
    group = runs.start_group(runs.tiny(), tmp_path / "two", world=2, befores={0: listed})
    assert runs.finish(*group, runs.start(runs.tiny(), tmp_path / "one", before=listed)) == [0, 0, 0]
    assert runs.trace(tmp_path / "two") == unbroken
    found, expected = ((tmp_path / name / "misclassified.json").read_text("utf-8") for name in ("two", "one"))
    assert found == expected and len(json.loads(found)) == 16


@pytest.mark.soak
def test_a_report_may_take_longer_than_the_timeout_of_the_process_group(tmp_path):
    group = runs.start_group(
        runs.tiny(),
        tmp_path / "two",
        world=2,
        befores={0: (faults.slow_report, 14)},
        environment={"MAMBAR_TIMEOUT": "10"},
    )
    assert runs.finish(*group) == [0, 0]
    assert (tmp_path / "two" / "model.safetensors").is_file() and (tmp_path / "two" / "result.json").is_file()


@pytest.mark.rel
@pytest.mark.slow
@pytest.mark.parametrize("precision, bound", [("fp32", 1e-6), ("fp64", 1e-12)])
def test_p5_four_shards_differ_by_less_than_the_bound(tmp_path, precision, bound, record_property):
    from mambar.training.checkpoint.store import CheckpointStore

    recipe = runs.tiny(num_shards=4, precision=precision)
    assert runs.finish(runs.start(recipe, tmp_path / "one")) == [0]
    assert runs.finish(*runs.start_group(recipe, tmp_path / "two", world=2)) == [0, 0]
    assert runs.finish(*runs.start_group(recipe, tmp_path / "four", world=4)) == [0] * 4
    one = CheckpointStore(tmp_path / "one" / "checkpoints").load()
    largest = 0.0
    for name in ("two", "four"):
        other = CheckpointStore(tmp_path / name / "checkpoints").load()
        for key, tensor in one.tensors.items():
            difference = (tensor.double() - other.tensors[key].double()).abs().max()
            assert difference <= bound, key
            largest = max(largest, float(difference))
    record_property("largest difference", largest)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_ddp_and_fsdp_train_the_same_and_resume(tmp_path, kind):
    from mambar.training.checkpoint.store import CheckpointStore

    # FSDP with checkpointed blocks, as Large needs it.
    recipe = runs.tiny(num_shards=4, grad_accum_steps=2, parallel=kind, grad_checkpointing=kind == "fsdp")
    plain = recipe.replace(parallel="exact", grad_checkpointing=False)
    assert runs.finish(*runs.start_group(plain, tmp_path / "exact", world=2)) == [0, 0]
    out, slow = tmp_path / kind, (faults.slow_steps, 0.3)
    group = runs.start_group(recipe, out, world=2, befores={0: slow, 1: slow})
    while runs.steps_in(out) < 4 and group[0].exitcode is None:
        time.sleep(0.01)
    os.kill(group[0].pid, signal.SIGTERM)
    assert runs.finish(*group) == [143, 143]
    assert runs.finish(*runs.start_group(recipe, out, world=2, resume=True)) == [0, 0]
    expected = CheckpointStore(tmp_path / "exact" / "checkpoints").load()
    found = CheckpointStore(out / "checkpoints").load()
    assert expected.tensors.keys() == found.tensors.keys()
    for key, tensor in expected.tensors.items():
        assert (tensor.double() - found.tensors[key].double()).abs().max() <= 1e-5, key
    assert (out / "model.safetensors").stat().st_size == (tmp_path / "exact" / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_one_reduction_after_the_passes_trains_the_same(tmp_path):
    """What replaces DDP's own reductions where the passes are replayed from CUDA graphs."""
    from mambar.training.checkpoint.store import CheckpointStore

    recipe, flat = runs.tiny(num_shards=4), (faults.flat_reduction,)
    assert runs.finish(runs.start(recipe, tmp_path / "one")) == [0]
    group = runs.start_group(recipe.replace(parallel="ddp"), tmp_path / "two", world=2, befores={0: flat, 1: flat})
    assert runs.finish(*group) == [0, 0]
    expected, found = (CheckpointStore(tmp_path / name / "checkpoints").load().tensors for name in ("one", "two"))
    for key, tensor in expected.items():
        assert (tensor.double() - found[key].double()).abs().max() <= 1e-5, key


@pytest.mark.rel
@pytest.mark.slow
def test_p5_saved_with_two_resumed_with_one_and_back(tmp_path, unbroken):
    out = tmp_path / "run"
    befores = {rank: (faults.all_of, (faults.die_at, "save", 3)) for rank in (0, 1)}
    group = runs.start_group(runs.tiny(), out, world=2, befores=befores, environment={"MAMBAR_TIMEOUT": "10"})
    group[0].join(120)
    for process in group:
        process.kill()
        process.join()
    code = runs.finish(runs.start(runs.tiny(), out, resume=True, before=(faults.die_at, "save", 2)))
    assert code == [-signal.SIGKILL]
    assert runs.finish(*runs.start_group(runs.tiny(), out, world=2, resume=True)) == [0, 0]
    assert runs.trace(out) == unbroken


@pytest.mark.rel
@pytest.mark.soak
def test_p5_eight_processes_and_a_run_resumed_on_fewer_have_the_same_bits(tmp_path):
    recipe = runs.tiny(num_shards=8)
    assert runs.finish(runs.start(recipe, tmp_path / "one")) == [0]
    expected = runs.trace(tmp_path / "one")
    assert runs.finish(*runs.start_group(recipe, tmp_path / "eight", world=8)) == [0] * 8
    assert runs.trace(tmp_path / "eight") == expected
    out = tmp_path / "run"
    for world, save in ((4, 3), (2, 2)):
        befores = dict.fromkeys(range(world), (faults.all_of, (faults.die_at, "save", save)))
        limit = {"MAMBAR_TIMEOUT": "10"}
        group = runs.start_group(recipe, out, world=world, befores=befores, environment=limit, resume=world == 2)
        group[0].join(240)
        assert group[0].exitcode == -signal.SIGKILL
        for process in group:
            process.kill()
            process.join()
    assert runs.finish(*runs.start_group(recipe, out, world=4, resume=True)) == [0] * 4
    assert runs.trace(out) == expected


@pytest.mark.rel
def test_p5_another_order_of_addition_gives_other_bits():
    """The negative control: adding the same numbers pair by pair, as an all-reduce may, gives other bits."""
    torch.manual_seed(0)
    shards = [torch.randn(10_000) for _ in range(4)]
    in_order = ((shards[0] + shards[1]) + shards[2]) + shards[3]
    in_pairs = (shards[0] + shards[2]) + (shards[1] + shards[3])
    assert not torch.equal(in_order, in_pairs)


@pytest.mark.rel
@pytest.mark.slow
def test_p5_an_odd_number_of_images_is_counted_exactly_once(tmp_path):
    from mambar.training.metrics_log import read_metrics

    recipe = runs.tiny(epochs=1, **{"data_options.limit": 47})
    assert runs.finish(runs.start(recipe, tmp_path / "one")) == [0]
    assert runs.finish(*runs.start_group(recipe, tmp_path / "two", world=2)) == [0, 0]
    one, two = ([row for row in read_metrics(tmp_path / name / "metrics.jsonl")][-1] for name in ("one", "two"))
    assert one["kind"] == "evaluation" and one == two
    assert (one["top1"] * 47) == pytest.approx(round(one["top1"] * 47), abs=1e-9)


def torchrun(script, *arguments, restarts, log):
    environment = {
        **os.environ,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": "1",
        "MAMBAR_TIMEOUT": "30",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "mambar.cli.torchrun", "--standalone", "--nproc_per_node=2"]
    command += [f"--max-restarts={restarts}", str(script), *map(str, arguments)]
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


SCRIPT = """
import os, sys
from pathlib import Path
from training import faults, runs
import torch
torch.set_num_threads(1)
from mambar.training.task import Task
Task.report = lambda *a, **k: None
out, pids, scenario = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rank, first = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
(pids / f"{os.getpid()}").touch()
workers = 1 if scenario == "worker" else 0
died = out.parent / "died"
if first and scenario == "rank 0 in a save" and rank == "0":
    faults.die_at("save", 3, died)
if first and scenario == "rank 1 in an evaluation" and rank == "1":
    faults.die_at("evaluation", 2, died)
if first and scenario == "rank 1" and rank == "1":
    faults.die_at("epoch edge", 2, died)
if first and scenario in ("rank 0", "forgetful") and rank == "0":
    faults.die_at("epoch edge", 3, died)
if first and scenario == "worker" and rank == "1":
    faults.die_in_worker(1, 1, died)
if scenario == "stopped" and rank == "1":
    faults.signal_in_evaluation(2)
    died.touch()
if scenario == "forgetful" and not first:
    faults.forget("optimizer")
runs.here(runs.tiny(), out, num_workers=workers)
"""
SCENARIOS = ["rank 0", "rank 1", "worker", "rank 0 in a save", "rank 1 in an evaluation"]
# In every run of the suite; the others in the soak.
SAMPLED = {"worker", "rank 0 in a save"}


def under_torchrun(tmp_path, scenario, *, restarts):
    """(exit code, run directory) of a run under torchrun with a fault in its first start."""
    script, pids, out = tmp_path / "script.py", tmp_path / "pids", tmp_path / "run"
    script.write_text(SCRIPT, "utf-8")
    pids.mkdir()
    code = torchrun(script, out, pids, scenario, restarts=restarts, log=tmp_path / "log").wait(400)
    assert (tmp_path / "died").exists(), "the fault did not happen: " + (tmp_path / "log").read_text("utf-8")[-3000:]
    started = [int(path.name) for path in pids.iterdir()]
    assert len(started) == (4 if restarts and scenario != "stopped" else 2)
    time.sleep(1)
    assert not [pid for pid in started if saving.alive(pid)]
    return code, out


@pytest.mark.rel
@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [scenario if scenario in SAMPLED else pytest.param(scenario, marks=pytest.mark.soak) for scenario in SCENARIOS],
)
def test_p6_a_dead_process_is_restarted_and_changes_nothing(tmp_path, unbroken, scenario):
    code, out = under_torchrun(tmp_path, scenario, restarts=2)
    assert code == 0, (tmp_path / "log").read_text("utf-8")[-3000:]
    assert runs.trace(out) == unbroken


@pytest.mark.rel
@pytest.mark.slow
def test_p7_a_rank_stopped_by_a_signal_is_not_restarted(tmp_path, unbroken):
    code, out = under_torchrun(tmp_path, "stopped", restarts=2)
    assert code == 143 and not (out / "result.json").exists()
    assert runs.finish(runs.start(runs.tiny(), out, resume=True)) == [0]
    assert runs.trace(out) == unbroken


@pytest.mark.rel
@pytest.mark.slow
def test_p6_a_restart_that_omits_the_optimizer_is_detected(tmp_path, unbroken):
    code, out = under_torchrun(tmp_path, "forgetful", restarts=2)
    assert code == 0
    assert runs.trace(out) != unbroken


@pytest.mark.rel
@pytest.mark.slow
@pytest.mark.parametrize("scenario", [pytest.param("rank 1", marks=pytest.mark.soak), "worker"])
def test_p6_without_restarts_the_run_fails_in_time_and_leaves_no_orphans(tmp_path, scenario):
    code, _ = under_torchrun(tmp_path, scenario, restarts=0)
    assert code != 0


@pytest.mark.rel
@pytest.mark.soak
def test_p6_many_random_deaths(tmp_path, unbroken, record_property):
    draw, deaths, slow = random.Random(2), 0, (faults.slow_steps, 0.1)
    for number in range(8):
        out = tmp_path / f"run-{number}"
        for _ in range(3):
            before = runs.steps_in(out)
            group = runs.start_group(
                runs.tiny(),
                out,
                world=2,
                befores={0: slow, 1: slow},
                resume=(out / "recipe.json").exists(),
                environment={"MAMBAR_TIMEOUT": "10"},
            )
            # Each start makes a few steps, otherwise the run never progresses.
            target = before + draw.randint(1, 3)
            while runs.steps_in(out) < target and group[0].exitcode is None:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.2))
            victim = draw.choice(group)
            victim.kill()
            victim.join()
            deaths += victim.exitcode == -signal.SIGKILL
            for process in group:
                process.kill()
                process.join()
        assert runs.finish(*runs.start_group(runs.tiny(), out, world=2, resume=True)) == [0, 0]
        assert runs.trace(out) == unbroken
    record_property("killed processes", deaths)
    assert deaths >= 20
