"""P7: a stop signal ends the run between two steps; the run is saved and resumes bit-identically."""

import contextlib
import os
import random
import signal
import time

import pytest

from mambar.training.loop.signals import Stopped
from training import faults, runs

SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143}
COUNTS = [pytest.param(1, id="few"), pytest.param(7, marks=pytest.mark.soak, id="many")]


def wait_for(out, steps, process):
    deadline = time.monotonic() + 120
    while runs.steps_in(out) < steps and process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.005)


def check_message(out, name):
    text = runs.error_of(out)
    assert "\n" not in text and f"Stopped by {name} after step" in text
    assert f"mambar train --resume {out}" in text


@pytest.mark.rel
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["SIGINT", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGTERM", "SIGUSR1"))])
def test_p7_stopped_by_a_signal_and_resumed_it_is_the_unbroken_run(tmp_path, unbroken, name, count, record_property):
    draw = random.Random(name)
    for number in range(count):
        out = tmp_path / f"run-{number}"
        log = tmp_path / f"log-{number}"
        process = runs.start(runs.tiny(), out, before=(faults.slow_steps, 0.05), log=log)
        wait_for(out, draw.randint(1, 7), process)
        os.kill(process.pid, getattr(signal, name))
        assert runs.finish(process) == [SIGNALS[name]]
        check_message(out, name)
        assert "Traceback" not in (log.read_text("utf-8") if log.exists() else "")
        assert (out / "checkpoints" / "last.json").exists()
        assert runs.finish(runs.start(runs.tiny(), out, resume=True)) == [0]
        assert runs.trace(out) == unbroken
    record_property(name, count)


@pytest.mark.rel
@pytest.mark.slow
def test_p7_a_second_ctrl_c_does_not_interrupt_the_save(tmp_path, unbroken):
    out = tmp_path / "run"
    process = runs.start(runs.tiny(), out, before=(faults.slow_steps, 0.05))
    wait_for(out, 3, process)
    for _ in range(5):
        # The run may have exited before the last signal.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
        time.sleep(0.01)
    assert runs.finish(process) == [130]
    assert runs.finish(runs.start(runs.tiny(), out, resume=True)) == [0]
    assert runs.trace(out) == unbroken


@pytest.mark.rel
@pytest.mark.slow
def test_p7_all_processes_agree_on_the_step(tmp_path, unbroken):
    """Only rank 1 receives the signal; both save and stop at the same step."""
    out = tmp_path / "run"
    slow = (faults.slow_steps, 0.05)
    group = runs.start_group(runs.tiny(), out, world=2, befores={0: slow, 1: slow})
    wait_for(out, 4, group[0])
    os.kill(group[1].pid, signal.SIGTERM)
    assert runs.finish(*group) == [143, 143]
    assert runs.error_of(out, 0) == runs.error_of(out, 1)
    assert runs.finish(runs.start(runs.tiny(), out, resume=True)) == [0]
    assert runs.trace(out) == unbroken


@pytest.mark.rel
@pytest.mark.slow
def test_p7_a_signal_during_an_evaluation_saves_before_it_and_repeats_it(tmp_path, unbroken):
    out = tmp_path / "run"
    process = runs.start(runs.tiny(), out, before=(faults.signal_in_evaluation, 8))
    assert runs.finish(process) == [143]
    rows = runs.read_rows(out)
    assert not [row for row in rows if row["kind"] == "evaluation" and row["step"] == rows[-1]["step"]]
    assert runs.finish(runs.start(runs.tiny(), out, resume=True)) == [0]
    assert runs.trace(out) == unbroken


@pytest.mark.rel
def test_p7_a_run_without_signal_handlers_is_detected(tmp_path):
    out = tmp_path / "run"
    process = runs.start(
        runs.tiny(),
        out,
        before=(faults.all_of, (faults.ignore_stop_signals,), (faults.slow_steps, 0.05)),
        log=tmp_path / "log",
    )
    wait_for(out, 3, process)
    os.kill(process.pid, signal.SIGTERM)
    assert runs.finish(process) != [143]


def test_the_message_of_a_stop_names_the_checkpoint_and_the_command(tmp_path):
    stop = Stopped("SIGUSR1", step=7, checkpoint=tmp_path / "step-00000007", out=tmp_path)
    assert stop.step == 7 and stop.exit_code == 143 and "after step 7" in str(stop)
