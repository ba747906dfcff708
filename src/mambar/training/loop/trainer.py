"""The training loop of one stage, for any task and any number of processes; it can be resumed at every step."""

import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambar.data.dataset import ImageDataset
from mambar.data.keys import key
from mambar.data.loading.loaders import Batch, evaluation_batches, training_batches
from mambar.data.loading.samplers import steps_per_epoch
from mambar.errors import DiskError, InputError, NonFiniteError
from mambar.training.checkpoint.store import Checkpoint, SavedModel
from mambar.training.loop import health
from mambar.training.loop.context import RunContext, TrainingProgress
from mambar.training.loop.optim import set_training_mode
from mambar.training.loop.schedule import LearningRate
from mambar.training.loop.signals import Stopped, StopSignals
from mambar.training.loop.throughput import Throughput
from mambar.training.loop.train_state import TrainState
from mambar.training.loop.update import PendingStep, StepKeys, StepResult
from mambar.training.recipe import Recipe
from mambar.training.task import EvalResult, EvaluationContext, Task

_LOG = logging.getLogger("mambar.training")


class RunDirectoryDeleted(DiskError):
    """The run directory was deleted during the run; `on_save_error` does not apply."""


class Trainer:
    """Trains the model of one stage.

    for each step:   shards → update (skipped if loss or gradient is not finite)
      at an epoch:   evaluate → keep the best
      when due:      save → prune
      at a signal:   save → stop
    """

    def __init__(
        self,
        recipe: Recipe,
        index: int,
        *,
        task: Task,
        backbone: Any,
        train_set: ImageDataset,
        val_set: ImageDataset,
        context: RunContext,
        progress: TrainingProgress,
    ) -> None:
        self.recipe, self.stage = recipe, recipe.stages[index]
        self.task, self.context, self.progress = task, context, progress
        self.train_set, self.val_set = train_set, val_set
        stage = self.stage
        self.steps_per_epoch = steps_per_epoch(len(train_set), batch_size=stage.batch_size, repeats=stage.aug_repeats)
        if not self.steps_per_epoch:
            raise InputError(
                f"batch_size={stage.batch_size} exceeds the {len(train_set)} training images of "
                f"{train_set.name}; use a smaller one."
            )
        self.steps = stage.num_steps(self.steps_per_epoch)
        self.state = TrainState(recipe, stage, task=task, backbone=backbone, context=context)
        self.rates = LearningRate(stage=stage, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
        # The last evaluation in this process, for the report.
        self.eval_result: EvalResult | None = None
        self.last_saved: tuple[int, int] | None = None
        # Kinds of files that could not be written at the last attempt (on_save_error=continue).
        self._missing: set[str] = set()
        self._has_just_rolled_back = False
        self._throughput = Throughput(context.num_workers)
        # The seed and the batches of this and all further epochs.
        self._stream: tuple[int, Generator[Batch, None, None]] | None = None

    # The loop

    def run(self) -> TrainingProgress:
        """Trains to the end of the stage, evaluates and saves."""
        context = self.context
        self.state.setup()
        title = f"{self.recipe.name}, {self.stage.name}" if len(self.recipe.stages) > 1 else self.recipe.name
        context.display.start(title, steps=self.steps, done=self.progress.step)
        try:
            if self.last_saved is None:
                # A rollback in the first steps needs a checkpoint.
                self._save()
            self._evaluate_if_due()
            while self.progress.step < self.steps:
                self._run_epoch()
            self._save()
        finally:
            self._close_batches()
            context.display.close()
        return self.progress

    def _run_epoch(self) -> None:
        progress = self.progress
        epoch, first = divmod(progress.step, self.steps_per_epoch)
        seed = self._seed()
        batches = self._batches(seed, epoch, first)
        set_training_mode(self.state.model)
        num_rollbacks = progress.num_rollbacks
        last = min((epoch + 1) * self.steps_per_epoch, self.steps)
        self._throughput.restart()
        pending: tuple[PendingStep, float] | None = None
        while progress.step < last:
            keys = StepKeys(seed=seed, epoch=epoch, step=progress.step - epoch * self.steps_per_epoch)
            lr = self.rates.at(progress.step) * progress.lr_factor
            update = self.state.update
            started = update.start(batches, keys, stop_signals=self.context.stop_signals)
            # The GPU has finished the step before this one meanwhile.
            stop = self._finish(pending, progress.step, epoch)
            if progress.num_rollbacks != num_rollbacks:
                return
            progress.step += 1
            pending = started, lr
            if update.is_delayed:
                update.apply_if_finite(started, lr=lr)
            if stop or self._must_finish(last):
                stop, pending = self._finish(pending, progress.step, epoch) or stop, None
            if progress.num_rollbacks != num_rollbacks:
                return
            if pending is None:
                if progress.step == last:
                    self._evaluate_if_due()
                self._save_or_stop(stop)

    def _must_finish(self, last: int) -> bool:
        """Whether the present step must be finished before the next one starts."""
        step, health_every = self.progress.step, self.recipe.health_every
        due = step == last or step % self._save_every == 0 or (health_every is not None and step % health_every == 0)
        return due or not self.state.update.is_delayed

    def _finish(self, pending: tuple[PendingStep, float] | None, step: int, epoch: int) -> str | None:
        """Waits for the result of a step and logs it; the stop signal that some rank had received at its start."""
        if pending is None:
            return None
        started, lr = pending
        result = self.state.update.finish(started, lr=lr, progress=self.progress)
        self._record(result, lr, epoch, step)
        return result.stop

    @property
    def _save_every(self) -> int:
        """Steps between checkpoints."""
        return self.recipe.save_every or self.steps_per_epoch

    def _batches(self, seed: int, epoch: int, first: int) -> Iterator[Batch]:
        """The batches from this step on; an epoch continues those of the epoch before it, with the same workers."""
        if self._stream is not None and self._stream[0] == seed:
            return self._stream[1]
        self._close_batches()
        batches = training_batches(
            self.train_set,
            self.task.train_transform(),
            seed=seed,
            epoch=epoch,
            first_step=first,
            num_epochs=-(-self.steps // self.steps_per_epoch) - epoch,
            batch_size=self.stage.batch_size,
            shards=self.recipe.num_shards,
            local_shards=self.context.process_group.local_shards(self.recipe.num_shards),
            repeats=self.stage.aug_repeats,
            num_workers=self.context.num_workers,
            pin_memory=self.context.process_group.device.type == "cuda",
        )
        self._stream = seed, batches
        return batches

    def _close_batches(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    def _seed(self) -> int:
        """Seed of the stage; another one after each rollback, so that the order of the samples changes."""
        return key(self.recipe.seed, "stage", self.progress.stage, self.progress.num_rollbacks)

    def _record(self, result: StepResult, lr: float, epoch: int, step: int) -> None:
        progress, size = self.progress, self.stage.batch_size
        total_steps = progress.offset + step
        images_per_second = self._throughput.step(result, size)
        scalars = {name: value for name, value in result.scalars.items() if name not in ("loss", "num_correct")}
        if "num_correct" in result.scalars:
            scalars["accuracy"] = result.scalars["num_correct"] / size
        explained = self.state.scale.update(finite=result.is_finite)
        if result.is_finite:
            progress.consecutive_skips = 0
        else:
            progress.num_skipped += 1
            progress.consecutive_skips += 0 if explained else 1
            _LOG.warning(
                "Step %d: loss %s, gradient norm %s; no update was made.",
                *(total_steps, result.loss, result.grad_norm),
            )
        if step % self.recipe.log_every == 0 or not result.is_finite:
            self._log_metrics(
                "training",
                {
                    "step": total_steps,
                    "stage": progress.stage,
                    "epoch": epoch,
                    "loss": result.loss,
                    **scalars,
                    "lr": lr,
                    "grad_norm": result.grad_norm,
                    "skipped": progress.num_skipped,
                    "images_per_second": images_per_second,
                    "memory_gib": self.context.process_group.peak_memory,
                },
            )
        self._log_layer_statistics(step)
        self.context.display.step(step, loss=result.loss, accuracy=scalars.get("accuracy"), images=size)
        if progress.consecutive_skips >= self.recipe.max_consecutive_skips:
            self._roll_back(total_steps)

    def _log_layer_statistics(self, step: int) -> None:
        every, progress = self.recipe.health_every, self.progress
        if every is None or step % every or self.state.sharding.is_sharded:
            return
        found: dict[str, list[float]] = {}
        if self.context.process_group.is_main:
            images = self.state.update.last_shards[0].images.to(self.context.precision.param_dtype)
            with self.context.precision.autocast():
                found = health.layer_statistics(self.state.backbone, images)
        self._log_metrics("health", {"step": progress.offset + step, "stage": progress.stage, **found})

    # Evaluation

    def _evaluate_if_due(self) -> None:
        progress = self.progress
        epoch, rest = divmod(progress.step, self.steps_per_epoch)
        finished = progress.step >= self.steps
        due = progress.step > 0 and rest == 0 and epoch % self.recipe.eval_every == 0
        if (due or finished) and progress.evaluated_step != progress.step:
            self._evaluate()

    def _evaluate(self) -> None:
        progress = self.progress
        measured = self.evaluate(self.state.model)
        metrics = dict(measured.metrics)
        chosen, candidates = measured, {"weights": metrics[self.task.metric]}
        if self.state.ema is not None:
            averaged = self.evaluate(self.state.ema.model)
            metrics.update({f"ema_{name}": value for name, value in averaged.metrics.items()})
            candidates["ema"] = averaged.metrics[self.task.metric]
            if self.recipe.final_weights == "ema":
                chosen = averaged
        self.eval_result = chosen
        progress.evaluated_step, progress.metrics = progress.step, metrics
        sign = 1 if self.task.higher_is_better else -1
        which, value = max(candidates.items(), key=lambda item: -math.inf if math.isnan(item[1]) else sign * item[1])
        # On a tie the earlier checkpoint stays the best; NaN is never best.
        is_best = not math.isnan(value) and (progress.best is None or sign * value > sign * progress.best)
        if is_best and self._save_best(which, value):
            progress.best, progress.best_step = value, progress.total_steps
        self._log_metrics("evaluation", {"step": progress.total_steps, "stage": progress.stage, **metrics})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.context.display.message(f"after step {progress.step}: {shown}")

    def evaluate(self, model: nn.Module, dataset: ImageDataset | None = None) -> EvalResult:
        """Evaluates a model on the validation images or on `dataset`, each exactly once over all ranks."""
        dataset = dataset or self.val_set
        processes = self.context.process_group
        micro_batch = self.stage.batch_size // self.recipe.num_shards // self.stage.grad_accum_steps
        batches = evaluation_batches(
            dataset,
            self.task.eval_transform(),
            batch_size=self.task.eval_batch_size(max(micro_batch, 1)),
            num_workers=self.context.num_workers,
            rank=processes.rank,
            world_size=processes.world_size,
            pin_memory=processes.device.type == "cuda",
        )
        count = len(range(0, len(dataset), processes.world_size))
        numerics = self.context.precision
        context = EvaluationContext(
            device=processes.device,
            dtype=numerics.param_dtype,
            autocast=numerics.autocast,
            all_reduce=processes.all_reduce,
            gather_objects=processes.gather_objects,
        )
        was_training = model.training
        model.eval()
        result = self.task.evaluate(model, self._until_stopped(batches, count), context)
        model.train(was_training)
        return result

    def _until_stopped(self, batches: Iterator[Batch], limit: int) -> Iterator[Batch]:
        """The batches of an evaluation; stops the run on all ranks after a signal to one of them."""
        for _ in range(limit):
            batch = next(batches, None)
            flags = torch.tensor([*self.context.stop_signals.flags(), 0.0 if batch is None else 1.0])
            *signals, left = self.context.process_group.all_reduce(flags).tolist()
            self._save_or_stop(StopSignals.first_of(signals), due=False)
            if not left:
                return
            if batch is not None:
                yield batch

    # Saving

    def best_path(self) -> Path | None:
        """Checkpoint of the best weights; None if every evaluation gave NaN."""
        first = self.context.process_group.is_main
        best = self.context.store.load_best() if first else None
        return self.context.process_group.broadcast_object(best.path if best else None)

    def _save_or_stop(self, stop: str | None, *, due: bool = True) -> None:
        progress = self.progress
        if due and progress.step % self._save_every == 0:
            self._save()
        if stop is not None:
            self._save(must=True)
            name = self.context.store.directory / f"step-{progress.total_steps:08d}"
            raise Stopped(stop, step=progress.total_steps, checkpoint=name, out=self.context.store.directory.parent)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Loads tensors and progress of a checkpoint of this stage."""
        self.state.load(checkpoint)
        self.progress.update(checkpoint.scalars)
        self.last_saved = (self.progress.total_steps, self.progress.evaluated_step)

    def _save(self, *, must: bool = False) -> None:
        progress = self.progress
        if self.last_saved == (progress.total_steps, progress.evaluated_step):
            return
        scalars = {
            "progress": progress.to_dict(),
            "scale": self.state.scale.state(),
            "facts": self.context.facts,
            "config": self.state.backbone.config.to_dict(),
        }
        # All ranks gather sharded parameters; rank 0 writes.
        tensors = self.state.state_dict()
        if not self._write_on_main(
            "checkpoint", lambda: self._write_checkpoint(progress.total_steps, tensors, scalars), must=must
        ):
            return
        self.last_saved = (progress.total_steps, progress.evaluated_step)
        self._has_just_rolled_back = False

    def check_directory(self) -> None:
        """Raises RunDirectoryDeleted if the file of the metrics log was deleted."""
        file = self.context.metrics.path
        if self.context.process_group.is_main and not file.exists():
            raise RunDirectoryDeleted(f"{file} was deleted during the run; its results are lost. Start a new run.")

    def _write_checkpoint(self, step: int, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        self.check_directory()
        self.context.metrics.sync()
        part = "ema" if self.recipe.final_weights == "ema" and self.state.ema is not None else "model"
        self.context.store.save(step, tensors, scalars, model=self._saved_model(part))

    def _saved_model(self, part: str) -> SavedModel | None:
        """The loadable model of a checkpoint, whose tensors are named `part`; None if its backbone has no config."""
        model, backbone = self.state.model, self.state.backbone
        try:
            saved, content = self.task.saved_model(model, backbone=backbone, recipe=self.recipe, val_set=self.val_set)
        except InputError:
            return None
        names = [name for name, module in model.named_modules() if module is saved]
        return SavedModel(content, ".".join([part, *filter(None, names[:1]), ""])) if names else None

    def _save_best(self, which: str, value: float) -> bool:
        step = self.progress.total_steps
        scalars = {"which": which, "metric": self.task.metric, "value": value}
        tensors = {f"model.{name}": tensor for name, tensor in self.state.weights(which).items()}
        return self._write_on_main(
            "best weights",
            lambda: self.context.store.save_best(step, tensors, scalars, model=self._saved_model("model")),
        )

    def _write_on_main(self, what: str, write: Callable[[], object], *, must: bool = False) -> bool:
        """Writes on rank 0; True on every rank if it succeeded. `must`: a failure ends the run."""
        error: Exception | None = None
        if self.context.process_group.is_main:
            try:
                write()
            except (DiskError, NonFiniteError) as caught:
                error = caught
        error = self.context.process_group.broadcast_object(error)
        if error is not None and (must or not self._may_continue(what, error)):
            raise error
        if error is None:
            self._missing.discard(what)
        return error is None

    def _may_continue(self, what: str, error: Exception) -> bool:
        """True if the run continues after a failed save; warns once until a later attempt succeeds."""
        if (
            not isinstance(error, DiskError)
            or isinstance(error, RunDirectoryDeleted)
            or self.recipe.on_save_error != "continue"
        ):
            return False
        if what not in self._missing:
            self._missing.add(what)
            _LOG.warning("%s Training continues without the %s and tries again.", error, what)
        return True

    def _log_metrics(self, kind: str, values: Mapping[str, Any]) -> None:
        """Writes a row on rank 0; every rank must call this, so that an error is raised on all of them."""
        self._write_on_main("metrics", lambda: self.context.metrics.append(kind, values))

    # Non-finite steps

    def _roll_back(self, failed_at: int) -> None:
        """Returns to an earlier checkpoint after step `failed_at` of the run, or raises NonFiniteError."""
        progress, recipe, context = self.progress, self.recipe, self.context
        first_non_finite = self._first_non_finite()
        processes, store = context.process_group, context.store
        num_rollbacks, factor = progress.num_rollbacks, progress.lr_factor
        found = processes.broadcast_object(self._target() if processes.is_main else None)
        good = f"the last good checkpoint is {found}" if found else "there is no checkpoint"
        sentence = (
            f"{recipe.max_consecutive_skips} steps in a row without finite numbers up to step {failed_at}; "
            f"first bad: {first_non_finite}"
        )
        if found is None or num_rollbacks >= recipe.max_rollbacks:
            raise NonFiniteError(f"{sentence}; {good}. Lower lr, set clip=1, or use precision=fp32.")
        checkpoint = store.read(found)
        skipped = progress.num_skipped
        self.restore(checkpoint)
        if processes.is_main:
            store.set_aside_after(progress.total_steps)
            context.metrics.open(step=progress.total_steps, evaluated=progress.total_evaluated_steps)
        processes.barrier()
        progress.num_rollbacks, progress.lr_factor = num_rollbacks + 1, factor * 0.5
        progress.num_skipped, progress.consecutive_skips = skipped, 0
        self._has_just_rolled_back = True
        _LOG.warning(
            "%s; went back to step %d with another order and learning rates times %g.",
            *(sentence, progress.total_steps, progress.lr_factor),
        )

    def _target(self) -> Path | None:
        """The newest valid checkpoint; after a rollback that did not help, the one before."""
        names = self.context.store.valid_checkpoints(min_step=self.progress.offset)
        if self._has_just_rolled_back and len(names) > 1:
            return names[1]
        return names[0] if names else None

    def _first_non_finite(self) -> str:
        """The first non-finite parameter, module or gradient, of the lowest rank that has one."""
        found = self.state.find_non_finite()
        named = [name for name in self.context.process_group.gather_objects(found) if name]
        return named[0] if named else "unknown (it did not show again)"
