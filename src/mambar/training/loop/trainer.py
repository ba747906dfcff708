"""The loop over the steps of one stage: for any task, any number of processes, resumable at every step."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambar.data.dataset import ImageDataset
from mambar.data.keys import key
from mambar.data.loading.loaders import Batch, evaluation_batches, training_batches
from mambar.data.loading.samplers import steps_per_epoch
from mambar.errors import DiskError, InputError, NonFiniteError
from mambar.models.vision_mamba import VisionMamba
from mambar.training.checkpoint.store import Checkpoint
from mambar.training.loop import health
from mambar.training.loop.context import Position, Surroundings
from mambar.training.loop.optim import set_training_mode
from mambar.training.loop.schedule import LearningRate
from mambar.training.loop.signals import Stopped, Wishes
from mambar.training.loop.train_state import Learner
from mambar.training.loop.update import Outcome, StepKeys
from mambar.training.recipe import Recipe
from mambar.training.task import EvaluationContext, Measured, Task

_LOG = logging.getLogger("mambar.training")


class Trainer:
    """Trains the model of one stage.

    for each step:   shards → update (or none, if a number is not finite)
      at an epoch:   evaluate → keep the best
      when due:      save → prune
      when asked:    save → stop
    """

    def __init__(
        self,
        recipe: Recipe,
        index: int,
        *,
        task: Task,
        backbone: VisionMamba,
        train_set: ImageDataset,
        val_set: ImageDataset,
        around: Surroundings,
        position: Position,
    ) -> None:
        self.recipe, self.stage = recipe, recipe.stages[index]
        self.task, self.around, self.position = task, around, position
        self.train_set, self.val_set = train_set, val_set
        stage = self.stage
        self.steps_per_epoch = steps_per_epoch(len(train_set), batch_size=stage.batch_size, repeats=stage.aug_repeats)
        if not self.steps_per_epoch:
            raise InputError(
                f"batch_size={stage.batch_size} exceeds the {len(train_set)} training images of "
                f"{train_set.name}; use a smaller one."
            )
        planned = stage.epochs * self.steps_per_epoch
        self.steps = planned if stage.max_steps is None else min(planned, stage.max_steps)
        self.learner = Learner(recipe, stage, task=task, backbone=backbone, around=around)
        self.rates = LearningRate.of(stage, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
        # What the last evaluation in this process found, for the report.
        self.measured: Measured | None = None
        self.last_saved: tuple[int, int] | None = None
        self._fresh_course = False

    # The loop

    def run(self) -> Position:
        """Trains from the present position to the end of the stage, saved and evaluated."""
        around = self.around
        self.learner.begin()
        title = f"{self.recipe.name}, {self.stage.name}" if len(self.recipe.stages) > 1 else self.recipe.name
        around.progress.start(title, steps=self.steps, done=self.position.step)
        try:
            if self.last_saved is None:
                # A roll-back in the first steps needs something to go back to.
                self._save()
            self._evaluate_if_due()
            while self.position.step < self.steps:
                self._run_epoch()
            self._save()
        finally:
            around.progress.close()
        return self.position

    def _run_epoch(self) -> None:
        position = self.position
        epoch, first = divmod(position.step, self.steps_per_epoch)
        seed = self._seed()
        batches = self._batches(seed, epoch, first)
        set_training_mode(self.learner.model)
        course = position.course
        last = min((epoch + 1) * self.steps_per_epoch, self.steps)
        while position.step < last:
            started = time.perf_counter()
            keys = StepKeys(seed=seed, epoch=epoch, step=position.step - epoch * self.steps_per_epoch)
            lr = self.rates.at(position.step) * position.lr_factor
            outcome = self.learner.update(batches, keys, lr=lr, wishes=self.around.wishes)
            position.step += 1
            self._note(outcome, lr, epoch, time.perf_counter() - started)
            if position.course != course:
                return
            if position.step == last:
                self._evaluate_if_due()
            self._save_or_stop(outcome.stop)

    def _batches(self, seed: int, epoch: int, first: int) -> Iterator[Batch]:
        return training_batches(
            self.train_set,
            self.task.train_transform(),
            seed=seed,
            epoch=epoch,
            first_step=first,
            batch_size=self.stage.batch_size,
            shards=self.recipe.num_shards,
            my_shards=self.around.processes.local_shards(self.recipe.num_shards),
            repeats=self.stage.aug_repeats,
            workers=self.around.workers,
            pinned=self.around.processes.device.type == "cuda",
        )

    def _seed(self) -> int:
        """The key of this stage's randomness; after a roll-back another order is tried."""
        return key(self.recipe.seed, "stage", self.position.stage, self.position.course)

    def _note(self, outcome: Outcome, lr: float, epoch: int, seconds: float) -> None:
        position, size = self.position, self.stage.batch_size
        explained = self.learner.scale.update(finite=outcome.finite)
        if outcome.finite:
            position.in_row = 0
        else:
            position.skipped += 1
            position.in_row += 0 if explained else 1
            _LOG.warning(
                "Step %d: loss %s, gradient norm %s; no update was made.",
                *(position.total, outcome.loss, outcome.grad_norm),
            )
        if position.step % self.recipe.log_every == 0 or not outcome.finite:
            self.around.metrics.append(
                "training",
                {
                    "step": position.total,
                    "stage": position.stage,
                    "epoch": epoch,
                    "loss": outcome.loss,
                    "accuracy": outcome.hits / size,
                    "lr": lr,
                    "grad_norm": outcome.grad_norm,
                    "skipped": position.skipped,
                    "images_per_second": size / max(seconds, 1e-9),
                    "memory_gib": self.around.processes.peak_memory,
                },
            )
        self._look_inside()
        self.around.progress.step(position.step, loss=outcome.loss, accuracy=outcome.hits / size, images=size)
        if position.in_row >= self.recipe.max_consecutive_skips:
            self._roll_back()

    def _look_inside(self) -> None:
        every, position = self.recipe.health_every, self.position
        if (
            every is None
            or position.step % every
            or not self.around.processes.is_main
            or self.learner.sharding.is_sharded
        ):
            return
        shard, _ = self.learner.update.shards_seen[0]
        with self.around.numerics.autocast():
            found = health.measure(self.learner.backbone, shard.images.to(self.around.numerics.storage))
        self.around.metrics.append("health", {"step": position.total, "stage": position.stage, **found})

    # Evaluation

    def _evaluate_if_due(self) -> None:
        position = self.position
        epoch, rest = divmod(position.step, self.steps_per_epoch)
        finished = position.step >= self.steps
        due = position.step > 0 and rest == 0 and epoch % self.recipe.eval_every == 0
        if (due or finished) and position.evaluated != position.step:
            self._evaluate()

    def _evaluate(self) -> None:
        position = self.position
        measured = self.measure(self.learner.model)
        metrics = dict(measured.metrics)
        chosen, candidates = measured, {"weights": metrics[self.task.metric]}
        if self.learner.ema is not None:
            averaged = self.measure(self.learner.ema.model)
            metrics.update({f"ema_{name}": value for name, value in averaged.metrics.items()})
            candidates["ema"] = averaged.metrics[self.task.metric]
            if self.recipe.final_weights == "ema":
                chosen = averaged
        self.measured = chosen
        position.evaluated, position.metrics = position.step, metrics
        which, value = max(candidates.items(), key=lambda item: -math.inf if math.isnan(item[1]) else item[1])
        # Ties keep the earlier one; a metric that is no number is never best.
        if not math.isnan(value) and (position.best is None or value > position.best):
            position.best, position.best_step = value, position.total
            self._save_best(which)
        self.around.metrics.append("evaluation", {"step": position.total, "stage": position.stage, **metrics})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.around.progress.message(f"after step {position.step}: {shown}")

    def measure(self, model: nn.Module) -> Measured:
        """Measures a model on the validation images, every one exactly once over all processes."""
        processes = self.around.processes
        micro_batch = self.stage.batch_size // self.recipe.num_shards // self.stage.grad_accum_steps
        batches = evaluation_batches(
            self.val_set,
            self.task.eval_transform(),
            batch_size=self.task.evaluation_batch(max(micro_batch, 1)),
            workers=self.around.workers,
            rank=processes.rank,
            world=processes.world_size,
            pinned=processes.device.type == "cuda",
        )
        count = len(range(0, len(self.val_set), processes.world_size))
        numerics = self.around.numerics
        context = EvaluationContext(
            device=processes.device, dtype=numerics.storage, autocast=numerics.autocast, total=processes.all_reduce
        )
        return self.task.evaluate(model, self._until_asked(batches, count), context)

    def _until_asked(self, batches: Iterator[Batch], most: int) -> Iterator[Batch]:
        """The batches of an evaluation; stops the run where a signal asks for it, in all processes at once."""
        for _ in range(most):
            batch = next(batches, None)
            flags = torch.tensor([*self.around.wishes.flags(), 0.0 if batch is None else 1.0])
            *asked, left = self.around.processes.all_reduce(flags).tolist()
            self._save_or_stop(Wishes.name(asked), due=False)
            if not left:
                return
            if batch is not None:
                yield batch

    # Saving

    def best_path(self) -> Path | None:
        """Where the best evaluated weights are, None if no evaluation gave a number."""
        first = self.around.processes.is_main
        best = self.around.store.load_best() if first else None
        return self.around.processes.broadcast_object(best.path if best else None)

    def _save_or_stop(self, stop: str | None, *, due: bool = True) -> None:
        position, every = self.position, self.recipe.save_every
        if due and position.step % (every or self.steps_per_epoch) == 0:
            self._save()
        if stop is not None:
            self._save(must=True)
            name = self.around.store.directory / f"step-{position.total:08d}"
            raise Stopped(stop, step=position.total, checkpoint=name, out=self.around.store.directory.parent)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over tensors and position of a checkpoint of this stage."""
        self.learner.load(checkpoint)
        self.position.update(checkpoint.scalars["position"])
        self.last_saved = (self.position.total, self.position.evaluated)

    def _save(self, *, must: bool = False) -> None:
        position = self.position
        if self.last_saved == (position.total, position.evaluated):
            return
        scalars = {
            "position": position.to_dict(),
            "scale": self.learner.scale.state(),
            "facts": self.around.facts,
            "config": self.learner.backbone.config.to_dict(),
        }
        # Gathered by all processes, where parameters are cut over them; written by one.
        tensors = self.learner.state()
        self._as_first(lambda: self._write(position.total, tensors, scalars), must=must)
        self.last_saved = (position.total, position.evaluated)
        self._fresh_course = False

    def _write(self, step: int, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        self.around.metrics.sync()
        self.around.store.save(step, tensors, scalars)

    def _save_best(self, which: str) -> None:
        position = self.position
        scalars = {"which": which, "metric": self.task.metric, "value": position.best}
        tensors = {f"model.{name}": tensor for name, tensor in self.learner.weights(which).items()}
        self._as_first(lambda: self.around.store.save_best(position.total, tensors, scalars))

    def _as_first(self, write: Callable[[], object], *, must: bool = False) -> None:
        """Lets rank 0 write; every process learns whether it could. `must`: a failure always ends the run."""
        error: Exception | None = None
        if self.around.processes.is_main:
            try:
                write()
            except (DiskError, NonFiniteError) as caught:
                error = caught
        error = self.around.processes.broadcast_object(error)
        if error is None:
            return
        if not must and isinstance(error, DiskError) and self.recipe.on_save_error == "continue":
            _LOG.warning("%s Training goes on without it.", error)
            return
        raise error

    # When numbers are not finite

    def _roll_back(self) -> None:
        position, recipe, around = self.position, self.recipe, self.around
        culprit = self._culprit()
        processes, store = around.processes, around.store
        failed_at, course, factor = position.total, position.course, position.lr_factor
        found = processes.broadcast_object(self._target() if processes.is_main else None)
        good = f"the last good checkpoint is {found}" if found else "there is no checkpoint"
        sentence = (
            f"{recipe.max_consecutive_skips} steps in a row without finite numbers up to step {failed_at}; "
            f"first bad: {culprit}"
        )
        if found is None or course >= recipe.max_rollbacks:
            raise NonFiniteError(f"{sentence}; {good}. Lower lr, set clip=1, or use precision=fp32.")
        checkpoint = store.read(found)
        skipped = position.skipped
        self.restore(checkpoint)
        if processes.is_main:
            store.set_aside_after(position.total)
            around.metrics.open(step=position.total, evaluated=position.total_evaluated)
        processes.barrier()
        position.course, position.lr_factor = course + 1, factor * 0.5
        position.skipped, position.in_row = skipped, 0
        self._fresh_course = True
        _LOG.warning(
            "%s; went back to step %d with another order and learning rates times %g.",
            *(sentence, position.total, position.lr_factor),
        )

    def _target(self) -> Path | None:
        """The checkpoint to go back to: the newest sound one; if going back there did not help, the one before."""
        names = self.around.store.valid_checkpoints(min_step=self.position.offset)
        if self._fresh_course and len(names) > 1:
            return names[1]
        return names[0] if names else None

    def _culprit(self) -> str:
        """The first thing with a bad number, as the first process that finds one names it."""
        found = self.learner.culprit()
        named = [name for name in self.around.processes.gather_objects(found) if name]
        return named[0] if named else "unknown (it did not show again)"
