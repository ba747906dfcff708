"""`mambar train`: what it hands to torchrun, and what a resumed run may change."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mambar.cli import torchrun as torchrun_module
from mambar.training.checkpoint.recipe_file import RecipeFile
from mambar.training.recipe import Recipe, Stage
from training.runs import steps_in

TINY = Recipe(
    name="tiny",
    model="mambar_tiny_patch16_224",
    config={"patch_size": 4, "embed_dim": 16, "depth": 1, "num_registers": 2, "register_reduction": 2, "d_state": 4},
    data="digits",
    data_options={"limit": 20},
    stages=(Stage(img_size=8, epochs=1, batch_size=10, train_crop="center"),),
)


@pytest.fixture
def torchrun(monkeypatch):
    """The (command, environment) that would have been started."""
    started = []

    class Agent:
        def __init__(self, command, *, env, start_new_session):
            started.append((command, env))

        def wait(self):
            return 7

    monkeypatch.setattr(torchrun_module.subprocess, "Popen", Agent)
    monkeypatch.setattr(torchrun_module.signal, "signal", lambda number, handler: None)
    return started


def test_processes_start_torchrun_with_what_its_restarts_need(mambar_command, torchrun, monkeypatch):
    arguments = ["train", "mambar_base", "data=/x", "--processes", "4", "--max-restarts=3", "stages.0.epochs=1"]
    monkeypatch.setattr(sys, "argv", ["mambar", *arguments])
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    assert mambar_command(*arguments)[0] == 7
    ((command, environment),) = torchrun
    assert command[:3] == [sys.executable, "-m", "mambar.cli.torchrun"]
    assert command[3:] == [
        *("--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=4", "--max-restarts=3", "-m", "mambar"),
        *("train", "mambar_base", "data=/x", "stages.0.epochs=1"),
    ]
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1" and int(environment["OMP_NUM_THREADS"]) >= 1


def test_one_process_needs_no_torchrun(mambar_command, torchrun):
    assert mambar_command("train", "no such recipe", "--processes", "1")[0] == 2
    assert not torchrun


def test_a_resumed_run_changes_only_what_is_named(mambar_command, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    RecipeFile.of(TINY).write(out)
    code, _, err = mambar_command("train", "--resume", out, "lr=0.5", "epochs=2")
    assert code == 2 and "stages.0.lr 0.0001 → 0.5" in err and "--override" in err and "epochs" not in err
    code, _, err = mambar_command("train", "--resume", out, "--override", "lr", "lr=0.5", "stages.0.batch_size=5")
    assert code == 2 and "batch_size 10 → 5" in err and "lr" not in err
    code, _, err = mambar_command("train", "tiny", "--override", "lr")
    assert code == 2 and "--resume" in err


SMALL = [
    *("precision=fp32", "num_shards=2", "save_every=1000", "log_every=1", "epochs=3", "batch_size=64"),
    *("img_size=8", "config.embed_dim=16", "config.depth=2", "data_options.limit=1000", "seed=1", "--num-workers=0"),
]


def start_command(log, *arguments):
    command = [sys.executable, "-m", "mambar", "train", *map(str, arguments)]
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=file, stderr=file)


def pid_of_rank(rank, out):
    """The process of `rank` whose command line has `--out=OUT`."""
    for process in Path("/proc").iterdir():
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if f"--out={out}".encode() in arguments and f"RANK={rank}".encode() in environment:
            return int(process.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.rel
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a rank in /proc")
@pytest.mark.parametrize("name, code", [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.soak)])
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.soak)])
def test_p7_a_signal_to_one_rank_ends_the_command_with_its_code_and_one_line(tmp_path, name, code, rank):
    out, log = tmp_path / "run", tmp_path / "log"
    run = start_command(log, "digits", f"--out={out}", *SMALL, "--processes", 2, "--quiet")
    while steps_in(out) < 3 and run.poll() is None:
        time.sleep(0.01)
    os.kill(pid_of_rank(rank, out), getattr(signal, name))
    assert run.wait(120) == code, log.read_text("utf-8")
    lines = log.read_text("utf-8").splitlines()
    assert len(lines) == 1 and f"Stopped by {name} after step {steps_in(out)}" in lines[0], lines
    assert list((out / "checkpoints").glob(f"step-{steps_in(out):08d}"))


@pytest.mark.rel
@pytest.mark.slow
@pytest.mark.parametrize("name, code", [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.soak)])
def test_p7_a_signal_reaches_the_processes_and_the_run_goes_on_where_it_was(tmp_path, name, code):
    start = functools.partial(start_command, tmp_path / "log")
    fields = SMALL
    out, straight = tmp_path / "run", tmp_path / "straight"
    run = start("digits", f"--out={out}", *fields, "--processes", 2)
    while steps_in(out) < 5 and run.poll() is None:
        time.sleep(0.01)
    for _ in range(3):
        run.send_signal(getattr(signal, name))
        time.sleep(0.05)
    assert run.wait(120) == code, (tmp_path / "log").read_text("utf-8")
    stopped = steps_in(out)
    assert 5 <= stopped < 45 and list((out / "checkpoints").glob(f"step-{stopped:08d}"))
    assert start("--resume", out, "--processes", 2).wait(300) == 0, (tmp_path / "log").read_text("utf-8")
    assert start("digits", f"--out={straight}", *fields).wait(300) == 0
    assert (out / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
