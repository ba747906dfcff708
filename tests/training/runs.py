"""Tiny training runs in separate processes, which can be killed, signalled and started as a group."""

import hashlib
import json
import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from mambar.training.recipe import Recipe, Stage

# Forked from a process with all imports done and nothing computed: a start takes a tenth of a second.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mambar.training.loop.stages", "sklearn.datasets"])

# Fields that depend on the clock and the machine.
TIMES = ("images_per_second", "memory_gib")


def tiny(**changes) -> Recipe:
    """Digits in 9 steps of 16 images on a network of a few thousand weights, with every source of randomness on."""
    recipe = Recipe(
        name="tiny",
        model="mambar_tiny_patch16_224",
        config={
            "patch_size": 4,
            "embed_dim": 16,
            "depth": 2,
            "num_registers": 2,
            "register_reduction": 2,
            "d_state": 4,
            "proj_drop_rate": 0.1,
        },
        data="digits",
        data_options={"limit": 48},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        stages=(
            Stage(
                img_size=8,
                epochs=3,
                batch_size=16,
                lr=2e-3,
                clip_grad=1.0,
                ema_decay=0.9,
                drop_path_rate=0.2,
                train_crop="shift",
                hflip=0.0,
                mixup=0.8,
                cutmix=1.0,
                label_smoothing=0.1,
            ),
        ),
        seed=7,
        precision="fp32",
        num_shards=2,
        save_every=2,
        log_every=1,
    )
    return recipe.replace(**changes)


def register_segmentation() -> None:
    """For `before`: the segmentation task without its report, which takes longer than these runs."""
    from mambar.segmentation.task import SegmentationTask

    SegmentationTask.report = lambda *arguments, **named: None


def register_detection() -> None:
    """For `before`: the detection task without its report."""
    from mambar.detection.task import DetectionTask

    DetectionTask.report = lambda *arguments, **named: None


def report_misclassified() -> None:
    """For `before`: the report of a classifier is the file of its misclassified images."""
    from mambar.training.classification import ClassificationTask

    def report(_, out, *arguments, result, **named) -> None:
        (out / "misclassified.json").write_text(json.dumps(result.details.misclassified), "utf-8")

    ClassificationTask.report = report


@dataclass
class Trace:
    """Everything that a bit-identical run reproduces."""

    metrics: list
    tensors: dict
    progress: dict
    model: str

    def __eq__(self, other):
        return (self.metrics, self.tensors, self.progress, self.model) == (
            other.metrics,
            other.tensors,
            other.progress,
            other.model,
        )


def trace(out: Path) -> Trace:
    """The trace of a finished run: metrics without times, all tensors by hash, the progress, the weights' hash."""
    from mambar.training.checkpoint.store import CheckpointStore
    from mambar.training.metrics_log import read_metrics

    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(out / "metrics.jsonl")]
    checkpoint = CheckpointStore(out / "checkpoints").load()
    assert checkpoint is not None
    hashes = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in checkpoint.tensors.items()}
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    return Trace(rows, hashes, checkpoint.scalars["progress"], weights)


def here(recipe, out, **options):
    """A run in this process."""
    from mambar.training import train

    return train(
        recipe, out=out, device=options.pop("device", "cpu"), num_workers=options.pop("num_workers", 0), **options
    )


def _child(recipe, out, options, environment, log, before):
    import torch

    from mambar.errors import MambarError
    from mambar.training.classification import ClassificationTask

    # The report is not tested here, and takes longer than these runs.
    ClassificationTask.report = lambda *arguments, **named: None
    os.environ.update(environment)
    # A process group of its own lets a test kill the whole run without itself.
    os.setsid()
    sys.stderr = log.open("a", encoding="utf-8") if log else sys.stderr
    torch.set_num_threads(1)
    if before is not None:
        before[0](*before[1:])
    try:
        try:
            here(recipe, out, **options)
        except MambarError as error:
            (out.parent / f"{out.name}.error-{os.environ.get('RANK', '0')}").write_text(str(error), "utf-8")
            os._exit(error.exit_code)
    except KeyboardInterrupt:
        # A second signal, after the save; the command line ends with the same code.
        os._exit(130)
    os._exit(0)


def start(recipe, out, *, before=None, log=None, environment=None, **options):
    """A run in a process of its own; `before` = (function, *arguments) is called in it first."""
    process = CONTEXT.Process(target=_child, args=(recipe, out, options, environment or {}, log, before))
    process.start()
    return process


def start_group(recipe, out, *, world, befores=None, environment=None, **options):
    """A run of `world` processes, as torchrun would start them."""
    port = free_port()
    group = []
    for rank in range(world):
        own = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "MAMBAR_TIMEOUT": "60",
            **(environment or {}),
        }
        before = (befores or {}).get(rank)
        group.append(start(recipe, out, environment=own, before=before, **options))
    return group


def finish(*processes, seconds=240):
    """Waits for processes to end; returns their exit codes."""
    codes = []
    for process in processes:
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError("a run did not end in time")
        codes.append(process.exitcode)
    return codes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def error_of(out: Path, rank: int = 0) -> str:
    return (out.parent / f"{out.name}.error-{rank}").read_text("utf-8")


def tree_hash(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        digest.update(str(path.relative_to(directory)).encode())
        if path.is_symlink():
            digest.update(str(path.readlink()).encode())
        elif path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def read_rows(out: Path) -> list:
    from mambar.training.metrics_log import read_metrics

    return read_metrics(out / "metrics.jsonl")


def steps_in(out: Path) -> int:
    """Number of training steps logged so far."""
    try:
        lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return 0
    steps = 0
    for line in lines:
        try:
            steps = max(steps, json.loads(line)["step"])
        except (ValueError, KeyError):
            continue
    return steps
