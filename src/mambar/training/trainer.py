"""The loop over the steps of one stage: for any task, any number of processes, resumable at every step."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambar.data.dataset import ImageDataset
from mambar.data.keys import key
from mambar.data.loaders import Batch, evaluation_batches, training_batches
from mambar.data.samplers import steps_per_epoch
from mambar.errors import DiskError, InputError, NonFiniteError
from mambar.hub.resize import transfer
from mambar.models.config import VisionMambaConfig
from mambar.models.vision_mamba import VisionMamba
from mambar.training import health
from mambar.training.ema import Ema
from mambar.training.optim import Optimizer, groups, set_training_mode
from mambar.training.position import Position, Surroundings
from mambar.training.precision import LossScale
from mambar.training.recipe import Recipe
from mambar.training.schedule import LearningRate
from mambar.training.signals import Stopped, Wishes
from mambar.training.state import Checkpoint
from mambar.training.task import EvaluationContext, Measured, Task
from mambar.training.update import Outcome, StepKeys, Updater

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
        processes, numerics = around.processes, around.numerics
        stage = self.stage
        self.steps_per_epoch = steps_per_epoch(len(train_set), batch_size=stage.batch_size, repeats=stage.repeats)
        if not self.steps_per_epoch:
            raise InputError(
                f"batch_size={stage.batch_size} exceeds the {len(train_set)} training images of "
                f"{train_set.name}; use a smaller one."
            )
        planned = stage.epochs * self.steps_per_epoch
        self.steps = planned if stage.max_steps is None else min(planned, stage.max_steps)
        self.backbone = backbone.to(device=processes.device, dtype=numerics.storage)
        self.backbone.set_grad_checkpointing(recipe.grad_checkpointing)
        self.model = task.wrap(self.backbone).to(device=processes.device, dtype=numerics.storage)
        if stage.freeze_backbone:
            task.freeze(self.model)
        self.ema = None if stage.ema_decay is None else Ema(self.model, stage.ema_decay)
        parts = groups(self.backbone, stage, model=self.model, prefix=task.backbone_prefix)
        self.optimizer = Optimizer(self.model, parts, stage)
        self.scale = LossScale(active=numerics.name == "fp16")
        self.rates = LearningRate.of(stage, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
        forward: Any = torch.compile(self.model) if recipe.compile else self.model
        self.update = Updater(
            self.model,
            forward,
            task=task,
            optimizer=self.optimizer,
            ema=self.ema,
            scale=self.scale,
            numerics=numerics,
            processes=processes,
            shards=recipe.shards,
            accumulation=stage.accumulation,
            clip=stage.clip,
        )
        # What the last evaluation in this process found, for the report.
        self.measured: Measured | None = None
        self.last_saved: tuple[int, int] | None = None
        self._fresh_course = False

    # The loop

    def run(self) -> Position:
        """Trains from the present position to the end of the stage, saved and evaluated."""
        around = self.around
        title = f"{self.recipe.name}, {self.stage.name}" if len(self.recipe.stages) > 1 else self.recipe.name
        around.progress.begin(title, steps=self.steps, done=self.position.step)
        try:
            if self.last_saved is None:
                # A roll-back in the first steps needs something to go back to.
                self._save()
            self._evaluate_if_due()
            while self.position.step < self.steps:
                self._run_epoch()
            self._save()
        finally:
            around.progress.end()
        return self.position

    def _run_epoch(self) -> None:
        position = self.position
        epoch, first = divmod(position.step, self.steps_per_epoch)
        seed = self._seed()
        batches = self._batches(seed, epoch, first)
        set_training_mode(self.model)
        course = position.course
        last = min((epoch + 1) * self.steps_per_epoch, self.steps)
        while position.step < last:
            started = time.perf_counter()
            keys = StepKeys(seed=seed, epoch=epoch, step=position.step - epoch * self.steps_per_epoch)
            lr = self.rates.at(position.step) * position.lr_factor
            outcome = self.update(batches, keys, lr=lr, wishes=self.around.wishes)
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
            shards=self.recipe.shards,
            my_shards=self.around.processes.shards(self.recipe.shards),
            repeats=self.stage.repeats,
            workers=self.around.workers,
            pinned=self.around.processes.device.type == "cuda",
        )

    def _seed(self) -> int:
        """The key of this stage's randomness; after a roll-back another order is tried."""
        return key(self.recipe.seed, "stage", self.position.stage, self.position.course)

    def _note(self, outcome: Outcome, lr: float, epoch: int, seconds: float) -> None:
        position, size = self.position, self.stage.batch_size
        explained = self.scale.update(finite=outcome.finite)
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
                },
            )
        self.around.progress.step(position.step, loss=outcome.loss, accuracy=outcome.hits / size, images=size)
        if position.in_row >= self.recipe.max_skips:
            self._roll_back()

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
        measured = self.measure(self.model)
        metrics = dict(measured.metrics)
        chosen, candidates = measured, {"weights": metrics[self.task.metric]}
        if self.ema is not None:
            averaged = self.measure(self.ema.model)
            metrics.update({f"ema_{name}": value for name, value in averaged.metrics.items()})
            candidates["ema"] = averaged.metrics[self.task.metric]
            if self.recipe.deliver == "ema":
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
        self.around.progress.say(f"after step {position.step}: {shown}")

    def measure(self, model: nn.Module) -> Measured:
        """Measures a model on the validation images, every one exactly once over all processes."""
        processes = self.around.processes
        micro_batch = self.stage.batch_size // self.recipe.shards // self.stage.accumulation
        batches = evaluation_batches(
            self.val_set,
            self.task.eval_transform(),
            batch_size=self.task.evaluation_batch(max(micro_batch, 1)),
            workers=self.around.workers,
            rank=processes.rank,
            world=processes.world,
            pinned=processes.device.type == "cuda",
        )
        count = len(range(0, len(self.val_set), processes.world))
        context = EvaluationContext(
            device=processes.device, autocast=self.around.numerics.autocast, total=processes.sum
        )
        return self.task.evaluate(model, self._until_asked(batches, count), context)

    def _until_asked(self, batches: Iterator[Batch], most: int) -> Iterator[Batch]:
        """The batches of an evaluation; stops the run where a signal asks for it, in all processes at once."""
        for _ in range(most):
            batch = next(batches, None)
            flags = torch.tensor([*self.around.wishes.flags(), 0.0 if batch is None else 1.0])
            *asked, left = self.around.processes.sum(flags).tolist()
            self._save_or_stop(Wishes.name(asked), due=False)
            if not left:
                return
            if batch is not None:
                yield batch

    # Saving

    def start_from(self, state: Mapping[str, Tensor], config: VisionMambaConfig) -> None:
        """Takes the weights of another model (positions resized, a head of another shape starts fresh).

        `state` may be that of a backbone, or of a model that the same task made of one.
        """
        prefix = self.task.backbone_prefix
        whole = bool(prefix) and any(name.startswith(prefix) for name in state)
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        with torch.no_grad():
            moved = transfer(self.backbone, inside if whole else state, config)
        if whole:
            rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
            self.model.load_state_dict(rest, strict=False)
        if moved.fresh:
            _LOG.info("Fresh start values for %s.", ", ".join(moved.fresh))
        if self.ema is not None:
            self.ema.load(self.model.state_dict())

    def best_path(self) -> Path | None:
        """Where the best evaluated weights are, None if no evaluation gave a number."""
        first = self.around.processes.is_first
        best = self.around.store.load_best() if first else None
        return self.around.processes.share(best.path if best else None)

    def _save_or_stop(self, stop: str | None, *, due: bool = True) -> None:
        position, every = self.position, self.recipe.save_every
        if due and position.step % (every or self.steps_per_epoch) == 0:
            self._save()
        if stop is not None:
            self._save()
            name = self.around.store.directory / f"step-{position.total:08d}"
            raise Stopped(stop, step=position.total, checkpoint=name, out=self.around.store.directory.parent)

    def state(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint."""
        parts: dict[str, dict[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state(),
        }
        if self.ema is not None:
            parts["ema"] = self.ema.state()
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over tensors and position of a checkpoint of this stage."""
        self.model.load_state_dict(checkpoint.part("model"))
        self.optimizer.load(checkpoint.part("optimizer"))
        if self.ema is not None:
            self.ema.load(checkpoint.part("ema"))
        self.scale.load(checkpoint.scalars["scale"])
        self.position.update(checkpoint.scalars["position"])
        self.last_saved = (self.position.total, self.position.evaluated)

    def _save(self) -> None:
        position = self.position
        if self.last_saved == (position.total, position.evaluated):
            return
        scalars = {
            "position": position.to_dict(),
            "scale": self.scale.state(),
            "facts": self.around.facts,
            "config": self.backbone.config.to_dict(),
        }
        self._as_first(lambda: self._write(position.total, scalars))
        self.last_saved = (position.total, position.evaluated)
        self._fresh_course = False

    def _write(self, step: int, scalars: dict[str, Any]) -> None:
        self.around.metrics.sync()
        self.around.store.save(step, self.state(), scalars)

    def _save_best(self, which: str) -> None:
        model = self.ema.model if which == "ema" and self.ema is not None else self.model
        position = self.position
        scalars = {"which": which, "metric": self.task.metric, "value": position.best}
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        self._as_first(lambda: self.around.store.save_best(position.total, tensors, scalars))

    def _as_first(self, write: Callable[[], object]) -> None:
        """Lets rank 0 write; every process learns whether it could."""
        error: Exception | None = None
        if self.around.processes.is_first:
            try:
                write()
            except (DiskError, NonFiniteError) as caught:
                error = caught
        error = self.around.processes.share(error)
        if error is None:
            return
        if isinstance(error, DiskError) and self.recipe.on_save_error == "continue":
            _LOG.warning("%s Training goes on without it.", error)
            return
        raise error

    # When numbers are not finite

    def _roll_back(self) -> None:
        position, recipe, around = self.position, self.recipe, self.around
        culprit = self._culprit()
        processes, store = around.processes, around.store
        failed_at, course, factor = position.total, position.course, position.lr_factor
        found = processes.share(self._target() if processes.is_first else None)
        good = f"the last good checkpoint is {found}" if found else "there is no checkpoint"
        sentence = (
            f"{recipe.max_skips} steps in a row without finite numbers up to step {failed_at}; first bad: {culprit}"
        )
        if found is None or course >= recipe.rollbacks:
            raise NonFiniteError(f"{sentence}; {good}. Lower lr, set clip=1, or use precision=fp32.")
        checkpoint = store.read(found)
        skipped = position.skipped
        self.restore(checkpoint)
        if processes.is_first:
            store.abandon_after(position.total)
            around.metrics.begin(step=position.total, evaluated=position.total_evaluated)
        processes.wait()
        position.course, position.lr_factor = course + 1, factor * 0.5
        position.skipped, position.in_row = skipped, 0
        self._fresh_course = True
        _LOG.warning(
            "%s; went back to step %d with another order and learning rates times %g.",
            *(sentence, position.total, position.lr_factor),
        )

    def _target(self) -> Path | None:
        """The checkpoint to go back to: the newest sound one; if going back there did not help, the one before."""
        names = self.around.store.sound(least=self.position.offset)
        if self._fresh_course and len(names) > 1:
            return names[1]
        return names[0] if names else None

    def _culprit(self) -> str:
        """The first thing with a bad number, as the first process that finds one names it."""
        found = None
        for batch, drop_key in self.update.shards_seen:
            found = found or health.first_bad_module(self.model, partial(self.update.replay, batch, drop_key))
        named = [name for name in self.around.processes.gather(found) if name]
        return named[0] if named else "unknown (it did not show again)"
