"""Processes that save checkpoints, for tests that kill them or let their system calls fail."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mambar.training.loop.stages", "sklearn.datasets"])

CALLS = ("write", "fsync", "rename", "unlink", "unlinkat", "mkdir", "rmdir")


def tensors_of(step: int, size: int = 3000):
    import torch

    return {"model.a": torch.full((size,), float(step)), "optimizer.b": torch.full((7,), step, dtype=torch.int64)}


def is_right(checkpoint) -> bool:
    """Whether every byte is what `tensors_of` gave for that step."""
    import torch

    expected = tensors_of(checkpoint.step, checkpoint.tensors["model.a"].numel())
    return all(torch.equal(expected[name], checkpoint.tensors[name]) for name in expected)


def good_saver(directory: Path, step: int) -> None:
    from mambar.training.checkpoint.store import CheckpointStore

    CheckpointStore(directory, keep=2).save(step, tensors_of(step), {"position": step})


def best_saver(directory: Path, step: int) -> None:
    from mambar.training.checkpoint.store import CheckpointStore

    CheckpointStore(directory).save_best(step, tensors_of(step), {"value": step})


def bad_saver(directory: Path, step: int) -> None:
    """Negative control: overwrites the only file, as the official code does."""
    import torch

    torch.save({"step": step, **tensors_of(step, 300_000)}, directory / "checkpoint.pt")


def good_loader(directory: Path):
    from mambar.training.checkpoint.store import CheckpointStore

    store = CheckpointStore(directory)
    store.create()
    return store.load()


def best_loader(directory: Path):
    from mambar.training.checkpoint.store import CheckpointStore

    store = CheckpointStore(directory)
    store.create()
    return store.load_best()


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if re.search(r"\.tmp\.\d+$", path.name)]


def _loop(save, directory: Path, ready: Path, first: int) -> None:
    import torch

    torch.set_num_threads(1)
    ready.touch()
    step = first
    while True:
        save(directory, step)
        # Acknowledged: from here on this save must not be lost.
        (directory.parent / "acknowledged").write_text(str(step), "utf-8")
        step += 1


def kill_while_saving(save, directory: Path, *, after: float, first: int) -> int:
    """Runs `save` in a loop and kills it after `after` seconds; returns the last acknowledged step (-1: none)."""
    ready = directory.parent / "ready"
    ready.unlink(missing_ok=True)
    process = CONTEXT.Process(target=_loop, args=(save, directory, ready, first))
    process.start()
    while not ready.exists():
        time.sleep(0.001)
    time.sleep(after)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"the saver ended by itself: {process.exitcode}"
    file = directory.parent / "acknowledged"
    return int(file.read_text("utf-8") or -1) if file.exists() else -1


def _once(save, directory: Path, step: int, go, answer) -> None:
    import torch

    torch.set_num_threads(1)
    from mambar.errors import MambarError

    go.recv()
    try:
        save(directory, step)
    except MambarError as error:
        answer.send(json.dumps({"exit": error.exit_code, "text": str(error)}))
    except OSError as error:
        answer.send(json.dumps({"exit": 1, "text": repr(error)}))
    else:
        answer.send(json.dumps({"exit": 0, "text": ""}))


def save_under_strace(save, directory: Path, step: int, log: Path, inject: str | None) -> dict | None:
    """One save with system calls traced into `log`; returns its result, None if it was killed.

    Never with --seccomp-bpf, which silently disables the injection of KILL.
    """
    go, go_child = CONTEXT.Pipe()
    answer, answer_child = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_once, args=(save, directory, step, go_child, answer_child))
    process.start()
    answer_child.close()
    command = ["strace", "-f", "-y", "-o", str(log), "-e", "trace=" + ",".join((*CALLS, "openat"))]
    command += ["-e", inject] if inject else []
    tracer = subprocess.Popen([*command, "-p", str(process.pid)], stderr=subprocess.PIPE, text=True, encoding="utf-8")
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    assert "attached" in line, line
    go.send("go")
    try:
        text = answer.recv()
    except EOFError:
        text = None
    process.join(30)
    tracer.wait(30)
    tracer.stderr.close()
    return None if text is None else json.loads(text)


def calls_in(log: Path, directory: Path) -> list[tuple[str, str]]:
    """(call, line) of the traced calls that touch `directory`, in order."""
    found = []
    for line in log.read_text(errors="replace", encoding="utf-8").splitlines():
        match = re.match(r"\d+\s+(\w+)\((.*)", line)
        if match and match.group(1) in CALLS and str(directory) in line:
            found.append((match.group(1), line))
    return found


def fresh(directory: Path, template: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(template, directory)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def limited(directory: Path, answer) -> None:
    """A save in a process that may not write files above 5,000 bytes."""
    import resource

    from mambar.errors import DiskError

    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        good_saver(directory, 2)
    except DiskError as error:
        answer.send(str(error))
