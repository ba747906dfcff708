"""`mambar train`: what it hands to torchrun, and what a resumed run may change."""

import sys

import pytest

from mambar.cli import train as verb
from mambar.training.recipe import Recipe, Stage

TINY = Recipe(
    name="tiny",
    model="mambar_tiny_patch16_224",
    config={"patch_size": 4, "dim": 16, "depth": 1, "num_registers": 2, "reduce": 2, "state": 4},
    data="digits",
    data_options={"limit": 20},
    stages=(Stage(image_size=8, epochs=1, batch_size=10, crop="center"),),
)


@pytest.fixture
def torchrun(monkeypatch):
    """The (command, environment) that would have been started."""
    started = []

    class Done:
        returncode = 7

    def run(command, *, env, check):
        started.append((command, env))
        return Done

    monkeypatch.setattr(verb.subprocess, "run", run)
    return started


def test_processes_start_torchrun_with_what_its_restarts_need(mambar_command, torchrun, monkeypatch):
    arguments = ["train", "mambar_base", "data=/x", "--processes", "4", "--max-restarts=3", "stages.0.epochs=1"]
    monkeypatch.setattr(sys, "argv", ["mambar", *arguments])
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    assert mambar_command(*arguments)[0] == 7
    ((command, environment),) = torchrun
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[3:] == [
        *("--standalone", "--nproc_per_node=4", "--max-restarts=3", "-m", "mambar"),
        *("train", "mambar_base", "data=/x", "stages.0.epochs=1"),
    ]
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1" and int(environment["OMP_NUM_THREADS"]) >= 1


def test_one_process_needs_no_torchrun(mambar_command, torchrun):
    assert mambar_command("train", "no such recipe", "--processes", "1")[0] == 2
    assert not torchrun


def test_a_resumed_run_changes_only_what_is_named(mambar_command, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.json").write_text(TINY.to_json())
    code, _, err = mambar_command("train", "--resume", out, "lr=0.5", "epochs=2")
    assert code == 2 and "stages.0.lr 0.0001 → 0.5" in err and "--override" in err and "epochs" not in err
    code, _, err = mambar_command("train", "--resume", out, "--override", "lr", "lr=0.5", "stages.0.batch_size=5")
    assert code == 2 and "batch_size 10 → 5" in err and "lr" not in err
    code, _, err = mambar_command("train", "tiny", "--override", "lr")
    assert code == 2 and "--resume" in err
