"""Runs the stages of a recipe in order, each from the weights of the previous one, and saves the final weights."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mambar import atomic_files
from mambar.data.dataset import ImageDataset
from mambar.data.keys import key
from mambar.errors import CheckpointMismatch, DataError, InputError, RecipeError
from mambar.hub.create import create_model
from mambar.hub.files import load, load_weights
from mambar.models.backbones import build_backbone, config_from_dict, config_of
from mambar.models.config import VARIANTS, VisionMambaConfig
from mambar.models.timm_vit import TIMM_PREFIX
from mambar.training import classification  # noqa: F401  (registers the task)
from mambar.training.checkpoint.result_file import RESULT_NAME, read_result, write_result
from mambar.training.checkpoint.run_directory import RunDirectory
from mambar.training.checkpoint.store import Checkpoint, CheckpointStore
from mambar.training.distributed.process_group import ProcessGroup, init_process_group
from mambar.training.loop.changes import check_changes, check_extension
from mambar.training.loop.context import RunContext, TrainingProgress
from mambar.training.loop.precision import PrecisionPolicy, flush_denormals
from mambar.training.loop.signals import StopSignals, catch_stop_signals
from mambar.training.loop.trainer import Trainer
from mambar.training.memory_check import check_memory
from mambar.training.metrics_log import MetricsLog, ProgressDisplay, read_metrics
from mambar.training.recipe import DATA_OBJECT, Recipe
from mambar.training.result import RunResult
from mambar.training.stage import PREVIOUS_STAGE
from mambar.training.task import EvalResult
from mambar.training.task_registry import task_class
from mambar.training.trackers import make_trackers
from mambar.version import __version__

_LOG = logging.getLogger("mambar.training")


def run_stages(directory: RunDirectory, *, data: Any, device: str, num_workers: int) -> RunResult:
    """Runs all stages that are not finished in `directory`; see `mambar.training.run.train`."""
    finished = read_result(directory) if directory.resumed else None
    if finished is not None and not directory.changes:
        _LOG.info("The run in %s is finished already.", directory.path)
        return finished
    if finished is not None:
        check_extension(directory)
    with flush_denormals(), catch_stop_signals() as stop_signals:
        with init_process_group(device) as group:
            run = _Run(directory, group, stop_signals, data, num_workers, is_finished=finished is not None)
            result, report = run.run()
        # After the process group is destroyed, so that writing the report does not count towards its timeout.
        report()
    return result


class _Run:
    def __init__(
        self,
        directory: RunDirectory,
        group: ProcessGroup,
        stop_signals: StopSignals,
        data: Any,
        num_workers: int,
        *,
        is_finished: bool,
    ) -> None:
        recipe = directory.recipe
        self.is_finished = is_finished
        self.directory, self.recipe, self.group = directory, recipe, group
        self.sets = _open(recipe, data)
        train_set, val_set = self.sets["train"], self.sets["val"]
        fingerprints = {"train": train_set.fingerprint(), "val": val_set.fingerprint()}
        facts = {
            "data": {"classes": list(train_set.classes), **fingerprints},
            "version": __version__,
            "threads": torch.get_num_threads(),
            "device": group.device.type,
        }
        store = CheckpointStore(
            directory.path / "checkpoints", keep=recipe.keep_checkpoints, recipe_sha256=directory.recipe_sha256
        )
        if group.is_main:
            atomic_files.remove_stale_temporaries(directory.path)
            store.create()
        group.barrier()
        self.context = RunContext(
            process_group=group,
            precision=PrecisionPolicy.of(recipe.precision, group.device),
            store=store,
            metrics=MetricsLog(
                directory.path / "metrics.jsonl",
                trackers=make_trackers(recipe, directory.path) if group.is_main else (),
            ),
            display=ProgressDisplay(visible=group.is_main),
            stop_signals=stop_signals,
            num_workers=num_workers,
            facts=facts,
        )

    def run(self) -> tuple[RunResult, Callable[[], None]]:
        """Trains and saves the weights; the result, and a function that writes the report on rank 0."""
        checkpoint = self._last_checkpoint()
        progress = TrainingProgress()
        if checkpoint is not None:
            _check_facts(checkpoint, self.context.facts)
            progress.update(checkpoint.scalars)
            _LOG.info("Resuming after step %d from %s.", progress.total_steps, checkpoint.path)
        trainer: Trainer | None = None
        for index in range(progress.stage, len(self.recipe.stages)):
            previous, trainer = trainer, self._trainer(index, progress)
            if previous is None:
                if checkpoint is not None:
                    check_changes(self.directory, progress, trainer.steps_per_epoch, is_finished=self.is_finished)
                self._open_files(progress)
            if checkpoint is not None:
                trainer.restore(checkpoint)
                checkpoint = None
            else:
                self._start(trainer, index, previous)
            del previous
            trainer.run()
            if index + 1 < len(self.recipe.stages):
                progress = TrainingProgress(
                    stage=index + 1, offset=progress.total_steps, num_skipped=progress.num_skipped
                )
        assert trainer is not None
        return self._save_final_weights(trainer)

    def _open_files(self, progress: TrainingProgress) -> None:
        if self.group.is_main:
            # First, so that an extended run never counts as finished before its end.
            (self.directory.path / RESULT_NAME).unlink(missing_ok=True)
            self.directory.record_changes()
            self.context.metrics.open(step=progress.total_steps, evaluated=progress.total_evaluated_steps)

    def _last_checkpoint(self) -> Checkpoint | None:
        store, group = self.context.store, self.group
        if not group.is_main:
            path = group.broadcast_object(None)
            return None if path is None else store.read(path)
        checkpoint = store.load(repair=True)
        group.broadcast_object(None if checkpoint is None else checkpoint.path)
        return checkpoint

    def _trainer(self, index: int, progress: TrainingProgress) -> Trainer:
        recipe = self.recipe
        train_set = self.sets["train"]
        task = task_class(recipe.task).from_recipe(
            recipe, recipe.stages[index], classes=train_set.classes, train_set=train_set
        )
        backbone = build_model(recipe, index, num_classes=task.num_backbone_classes)
        return Trainer(
            recipe,
            index,
            task=task,
            backbone=backbone,
            train_set=train_set,
            val_set=self.sets["val"],
            context=self.context,
            progress=progress,
        )

    def _start(self, trainer: Trainer, index: int, previous: Trainer | None) -> None:
        source = self.recipe.stages[index].start_from
        if source not in PREVIOUS_STAGE:
            loaded = _starting_model(source)
            try:
                trainer.state.start_from(loaded.state_dict(), loaded.config)
            except CheckpointMismatch as error:
                raise CheckpointMismatch(
                    f"start_from={source} is not a {self.recipe.model} with the recipe's config: {error} "
                    f"pretrained={source} in place of start_from takes the architecture from the weights."
                ) from None
        elif previous is not None:
            if source == "ema" and previous.state.ema is None:
                raise RecipeError(
                    f"stages.{index}.start_from=ema, but stage {index - 1} has no EMA weights; set its ema_decay."
                )
            trainer.state.start_from(previous.state.weights(source), previous.state.backbone.config)

    def _save_final_weights(self, trainer: Trainer) -> tuple[RunResult, Callable[[], None]]:
        recipe, out, task, state = self.recipe, self.directory.path, trainer.task, trainer.state
        val_set, test_set = self.sets["val"], self.sets.get("test")
        which, measured, step = self._final_weights(trainer)
        evaluated = state.ema.model if which == "ema" and state.ema is not None else state.model
        tested = None if test_set is None else trainer.evaluate(evaluated, test_set)
        result = RunResult(
            metrics=measured.to_floats(),
            checkpoint=out / "model.safetensors",
            recipe=recipe,
            step=step,
            last_step=trainer.progress.total_steps,
            num_evaluations=self.group.broadcast_object(self._num_evaluations(trainer) if self.group.is_main else None),
            num_val_images=len(val_set),
            test_metrics=None if tested is None else tested.to_floats(),
            num_test_images=None if test_set is None else len(test_set),
        )
        # A float64 run is saved in float32 too.
        model = state.export_model(which).float().cpu()
        backbone = model.get_submodule(state.backbone_name)
        if self.group.is_main:
            trainer.check_directory()
            task.save(out, model, backbone=backbone, recipe=recipe, val_set=val_set)
        self.group.barrier()

        def report() -> None:
            if self.group.is_main:
                shown = dataclasses.replace(measured, origin=result.describe())
                task.report(out, model, backbone=backbone, recipe=recipe, result=shown, val_set=val_set)
                write_result(self.directory, result)
                self.context.metrics.close()

        return result, report

    def _final_weights(self, trainer: Trainer) -> tuple[str, EvalResult, int]:
        """The weights that `recipe.final_weights` names ("weights" or "ema"), their evaluation and their step."""
        state, last = trainer.state, trainer.progress.total_steps
        best = trainer.best_path() if self.recipe.final_weights == "best" else None
        if best is not None:
            checkpoint = self.context.store.read(best)
            state.load_weights(checkpoint.tensors_of("model"))
            return "weights", trainer.evaluate(state.model), checkpoint.step
        if self.recipe.final_weights == "ema" and state.ema is not None:
            return "ema", trainer.eval_result or trainer.evaluate(state.ema.model), last
        return "weights", trainer.eval_result or trainer.evaluate(state.model), last

    def _num_evaluations(self, trainer: Trainer) -> int:
        """Number of evaluations among which the final weights were chosen."""
        if self.recipe.final_weights != "best":
            return 1
        rows = read_metrics(self.context.metrics.path)
        found = sum(row["kind"] == "evaluation" and row["stage"] == trainer.progress.stage for row in rows)
        return found * (1 if trainer.state.ema is None else 2)


def build_model(recipe: Recipe, index: int, *, num_classes: int) -> Any:
    """The model of stage `index`, initialized with the seed of the recipe.

    model="same" takes the configuration of the model that the first stage starts from.
    """
    stage = recipe.stages[index]
    fields = {
        "img_size": stage.img_size,
        "num_classes": num_classes,
        "drop_path_rate": stage.drop_path_rate,
        **recipe.config,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(recipe.seed, "init", index))
        if recipe.model == "same":
            return build_backbone(_starting_model(recipe.stages[0].start_from).config.replace(**fields))
        config = config_of(recipe.model, **fields)
        if isinstance(config, VisionMambaConfig):
            check_memory(config)
        return build_backbone(config)


def _starting_model(source: str) -> Any:
    """A model to start from: a path, a hub id, the name of a released one (downloaded), or a run's checkpoint."""
    if source in PREVIOUS_STAGE:
        raise RecipeError(
            "model='same' needs start_from: give start_from=MODEL, a run directory, a file, a hub id, or the name of a "
            "released model."
        )
    if source in VARIANTS or source.startswith(TIMM_PREFIX):
        return create_model(source, pretrained=True)
    path = Path(source).expanduser()
    # Checkpoints of version 0.1 have no config.json.
    is_old = (path / "state.json").is_file() and not (path / "config.json").is_file()
    return _from_checkpoint(path) if is_old else load(source)


def _from_checkpoint(path: Path) -> Any:
    """The last weights of a `checkpoints/step-N` directory."""
    checkpoint = CheckpointStore(path.parent).read(path)
    if "config" not in checkpoint.scalars:
        raise RecipeError(f"start_from={path} has no model configuration; use a step-… directory beside it.")
    model = build_backbone(config_from_dict(checkpoint.scalars["config"]))
    load_weights(model, checkpoint.tensors_of("model"), origin=str(path))
    return model


def _open(recipe: Recipe, data: Any) -> dict[str, ImageDataset]:
    """The datasets by split; "test" only if the data have one."""
    task = task_class(recipe.task)
    if data is None and recipe.data.startswith(DATA_OBJECT):
        raise InputError(
            f"data={recipe.data}: this run was started with a dataset object; pass the same object, "
            "mambar.run(recipe, data=OBJECT, out=DIR, resume=True)."
        )
    splits = ("train", "val", "test") if task.has_test_split(recipe, data) else ("train", "val")
    opened = {split: task.open_dataset(recipe, split, data) for split in splits}
    for split, dataset in opened.items():
        if dataset.classes != opened["train"].classes:
            raise DataError(
                f"{recipe.data}: the train and {split} images have different classes ({len(opened['train'].classes)} "
                f"and {len(dataset.classes)}); give both the same classes."
            )
    return opened


def _check_facts(checkpoint: Checkpoint, facts: dict[str, Any]) -> None:
    stored = checkpoint.scalars["facts"]
    for name in ("classes", "train", "val"):
        if stored["data"][name] != facts["data"][name]:
            raise DataError(
                f"the {name} data differ from those at the start of this run (stored in {checkpoint.path}); resume "
                "with the same data, or start a new run elsewhere."
            )
    for name in ("threads", "device", "version"):
        if stored[name] != facts[name]:
            _LOG.warning(
                "%s was %s and is now %s: the run continues; its last bits may differ from an uninterrupted run.",
                *(name, stored[name], facts[name]),
            )
