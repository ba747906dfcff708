"""Faults injected into a run in a process of its own: functions for `runs.start(before=...)`."""

import os
import signal
import time
from pathlib import Path

import torch


def die(marker: Path | None = None) -> None:
    """SIGKILL of this process; the marker file shows that it happened."""
    if marker is not None:
        marker.touch()
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(place: str, number: int, marker: Path | None = None) -> None:
    """SIGKILL of this process at the given call of one function of the run."""
    from mambar import atomic_files
    from mambar.training.checkpoint import store as state
    from mambar.training.loop import trainer

    counted = {"n": 0}

    def deadly(function, counts=lambda *arguments: True):
        def wrapped(*arguments, **named):
            if counts(*arguments):
                counted["n"] += 1
                if counted["n"] == number:
                    die(marker)
            return function(*arguments, **named)

        return wrapped

    if place == "last.json":
        atomic_files.write_atomically = deadly(
            atomic_files.write_atomically, lambda path, data: path.name == "last.json"
        )
    elif place == "save":
        atomic_files.atomic_directory = deadly(atomic_files.atomic_directory)
    elif place == "prune":
        state.atomic_files.remove_directory = deadly(state.atomic_files.remove_directory)
    elif place == "evaluation":
        trainer.evaluation_batches = _deadly_iterator(trainer.evaluation_batches, number, marker)
    elif place == "epoch edge":
        trainer.Trainer._run_epoch = deadly(trainer.Trainer._run_epoch)
    else:
        raise AssertionError(place)


def _deadly_iterator(make, number, marker):
    counted = {"n": 0}

    def wrapped(*arguments, **named):
        for batch in make(*arguments, **named):
            counted["n"] += 1
            if counted["n"] == number:
                die(marker)
            yield batch

    return wrapped


def die_in_worker(epoch: int, step: int, marker: Path) -> None:
    """SIGKILL of the loader worker that loads this step's images."""
    from mambar.data.loading import loaders

    make, parent = loaders._Training.__call__, os.getpid()

    def deadly(self, task):
        if self.place(task)[:2] == (epoch, step) and os.getpid() != parent:
            die(marker)
        return make(self, task)

    loaders._Training.__call__ = deadly


def forget(what: str) -> None:
    """Negative controls: a resume that omits a part of the state."""
    from mambar.training.loop.context import TrainingProgress
    from mambar.training.loop.optim import Optimizer
    from mambar.training.loop.train_state import TrainState

    if what == "optimizer":
        Optimizer.load = lambda self, state, **named: None
    elif what == "ema":
        fill = TrainState._fill

        def without_average(self, model, tensors):
            if self.ema is None or model is not self.ema.model:
                fill(self, model, tensors)

        TrainState._fill = without_average
    elif what == "best":
        update = TrainingProgress.update

        def without_best(self, scalars):
            update(self, {"progress": {**scalars["progress"], "best": None, "best_step": None}})

        TrainingProgress.update = without_best
    else:
        raise AssertionError(what)


def slow_steps(seconds: float) -> None:
    """Makes every step slower, so that a signal arrives during it."""
    import time

    from mambar.training.loop.update import TrainStep

    start = TrainStep.start

    def slow(self, *arguments, **named):
        time.sleep(seconds)
        return start(self, *arguments, **named)

    TrainStep.start = slow


def delayed_results() -> None:
    """Reads the result of a step while the next one runs, as on a GPU."""
    from mambar.training.loop.update import TrainStep

    TrainStep._can_be_delayed = lambda self: True


def flat_reduction() -> None:
    """Sums gradients as with CUDA graphs: one all-reduce after the backward passes."""
    from mambar.training.loop import update

    plain = update.parallelize
    update.parallelize = lambda *arguments, **named: plain(*arguments, **{**named, "graphed": True})


def record_samples(file: Path) -> None:
    """Writes epoch, step, shard and the samples' numbers of every shard that is computed."""
    from mambar.training.classification import ClassificationTask

    prepare = ClassificationTask.prepare

    def recording(self, batch, *, seed, epoch):
        with file.open("a", encoding="utf-8") as lines:
            numbers = " ".join(str(int(index)) for index in batch.indices)
            lines.write(f"{epoch} {batch.step} {batch.shard} {numbers}\n")
        return prepare(self, batch, seed=seed, epoch=epoch)

    ClassificationTask.prepare = recording


def poison(kind: str, steps: tuple[int, ...], shard: int = 1, value: float = float("nan"), times: int = 10**9) -> None:
    """NaN (or another value) in the loss, one gradient or one activation of one shard at the given steps.

    Steps count within the epoch; after `times` poisoned shards nothing is changed.
    """
    from mambar.training.classification import ClassificationTask

    prepare, loss = ClassificationTask.prepare, ClassificationTask.loss
    state = {"hit": False, "left": times}

    def noting(self, batch, *, seed, epoch):
        state["hit"] = batch.step in steps and batch.shard == shard and state["left"] > 0
        state["left"] -= state["hit"]
        return prepare(self, batch, seed=seed, epoch=epoch)

    def poisoned(self, model, batch):
        if not state["hit"]:
            return loss(self, model, batch)
        if kind == "activation":
            layer = model.blocks[1].mixer.in_proj
            layer.forward = _set_one(layer.forward, value)
            try:
                return loss(self, model, batch)
            finally:
                del layer.forward
        found = loss(self, model, batch)
        if kind == "loss":
            return {**found, "loss": found["loss"] * value}
        spoiled = _Spoil.apply(model.blocks[0].mixer.out_proj.weight, value).sum()
        return {**found, "loss": found["loss"] + spoiled}

    ClassificationTask.prepare, ClassificationTask.loss = noting, poisoned


def _set_one(forward, value):
    def changed(inputs):
        output = forward(inputs).clone()
        output.view(-1)[3] = value
        return output

    return changed


class _Spoil(torch.autograd.Function):
    """Zeros whose gradient holds one bad number."""

    @staticmethod
    def forward(ctx, parameter, value):
        ctx.value = value
        return torch.zeros_like(parameter)

    @staticmethod
    def backward(ctx, gradient):
        bad = torch.zeros_like(gradient)
        bad.view(-1)[0] = ctx.value
        return bad, None


def spike(step: int, rate: float) -> None:
    """One learning rate that is far too high, the first time that this step is made."""
    from mambar.training.loop.schedule import LearningRate

    at = LearningRate.at
    state = {"left": 1}

    def spiked(self, number):
        if number == step and state["left"]:
            state["left"] = 0
            return rate
        return at(self, number)

    LearningRate.at = spiked


def all_of(*faults) -> None:
    """Several of these, each a (function, *arguments)."""
    for function, *arguments in faults:
        function(*arguments)


def signal_in_evaluation(number: int) -> None:
    """SIGTERM to this process at the given validation batch."""
    from mambar.training.loop import trainer

    make, counted = trainer.evaluation_batches, {"n": 0}

    def wrapped(*arguments, **named):
        for batch in make(*arguments, **named):
            counted["n"] += 1
            if counted["n"] == number:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    trainer.evaluation_batches = wrapped


def ignore_stop_signals() -> None:
    """The negative control of the signals: no handler is installed."""
    from contextlib import contextmanager

    from mambar.training.loop import stages
    from mambar.training.loop.signals import StopSignals

    @contextmanager
    def without_handlers():
        yield StopSignals()

    stages.catch_stop_signals = without_handlers


def scores(*values: float) -> None:
    """Makes the evaluations give these top-1 values, one evaluation after the other."""
    from mambar.training.classification import ClassificationTask
    from mambar.training.task import EvalResult

    left = [value for value in values for _ in ("weights", "ema")]

    def evaluate(self, model, batches, context):
        return EvalResult(metrics={"top1": left.pop(0), "top5": 1.0, "val_loss": 1.0})

    ClassificationTask.evaluate = evaluate


def poison_epoch(epoch: int, times: int) -> None:
    """NaN in the loss of shard 1 from the given epoch on, `times` times."""
    from mambar.training.classification import ClassificationTask

    prepare, loss = ClassificationTask.prepare, ClassificationTask.loss
    state = {"hit": False, "left": times}

    def noting(self, batch, *, seed, epoch):
        state["hit"] = batch.shard == 1 and epoch >= first and state["left"] > 0
        return prepare(self, batch, seed=seed, epoch=epoch)

    def poisoned(self, model, batch):
        found = loss(self, model, batch)
        if not state["hit"]:
            return found
        state["left"] -= 1
        return {**found, "loss": found["loss"] * float("nan")}

    first = epoch
    ClassificationTask.prepare, ClassificationTask.loss = noting, poisoned


def slow_report(seconds: float) -> None:
    """Makes the report slower by `seconds`."""
    from mambar.training.classification import ClassificationTask

    ClassificationTask.report = lambda *arguments, **named: time.sleep(seconds)


def fail_writes(place: str, step: int, stop_at: int | None = None) -> None:
    """DiskError at the first attempt to write a checkpoint, the best weights or the metrics of this step.

    `stop_at`: SIGTERM arrives before this step of the stage.
    """
    from mambar.errors import DiskError
    from mambar.training.checkpoint.store import CheckpointStore
    from mambar.training.loop.schedule import LearningRate
    from mambar.training.metrics_log import MetricsLog

    owner, name = {
        "checkpoint": (CheckpointStore, "save"),
        "best": (CheckpointStore, "save_best"),
        "metrics": (MetricsLog, "append"),
    }[place]
    write, at, left = getattr(owner, name), LearningRate.at, [step]

    def failing(self, first, second, *rest, **options):
        if (second.get("step") if place == "metrics" else first) in left:
            left.clear()
            raise DiskError("/disk: No space left on device.")
        return write(self, first, second, *rest, **options)

    def interrupted(self, number):
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return at(self, number)

    setattr(owner, name, failing)
    LearningRate.at = interrupted


def delete_directory(out: Path, step: int) -> None:
    """Deletes the run directory before this step of the stage."""
    import shutil

    from mambar.training.loop.schedule import LearningRate

    at = LearningRate.at

    def deleting(self, number):
        if number == step:
            shutil.rmtree(out)
        return at(self, number)

    LearningRate.at = deleting
