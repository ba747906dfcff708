"""Refuses changed fields of a resumed run that have no effect or no defined result."""

import dataclasses
import logging
from collections.abc import Iterable

from mambar.errors import RecipeError
from mambar.training.checkpoint.recipe_file import RECIPE_NAME
from mambar.training.checkpoint.run_directory import RunDirectory
from mambar.training.loop.context import TrainingProgress
from mambar.training.loop.schedule import LearningRate

_LOG = logging.getLogger("mambar.training")


def check_extension(directory: RunDirectory) -> None:
    """Raises RecipeError unless the changes of a finished run extend a last stage with a constant learning rate."""
    number, stage = len(directory.recipe.stages) - 1, directory.recipe.stages[-1]
    if not {f"stages.{number}.epochs", f"stages.{number}.max_steps"} & set(directory.changes):
        raise RecipeError(
            f"the run in {directory.path} is finished; {_listed(directory)} would have no effect. {_advice(directory)}"
        )
    if stage.schedule != "constant":
        raise RecipeError(
            f"the run in {directory.path} is finished and its {stage.schedule} learning rate has reached its end; "
            f"{_listed(directory)} cannot extend it. {_advice(directory)}"
        )


def check_changes(
    directory: RunDirectory, progress: TrainingProgress, steps_per_epoch: int, *, is_finished: bool
) -> None:
    """Raises RecipeError for changes that come too late for a run with this progress."""
    changes, stage, prefix = directory.changes, directory.recipe.stages[progress.stage], f"stages.{progress.stage}."
    begun = [f"stages.{index}.start_from" for index in range(progress.stage + 1)]
    passed = tuple(f"stages.{index}." for index in range(progress.stage))
    late = [name for name in changes if name in begun or name.startswith(passed)]
    if late:
        raise RecipeError(
            f"the run in {directory.path} is in stage {progress.stage}; {_listed(directory, late)} would have no "
            f"effect. {_advice(directory)}"
        )
    length = [name for name in ("epochs", "max_steps") if prefix + name in changes]
    if not length:
        return
    before = dataclasses.replace(stage, **{name: changes[prefix + name][0] for name in length})
    steps, shown = stage.num_steps(steps_per_epoch), _listed(directory, [prefix + name for name in length])
    if steps == before.num_steps(steps_per_epoch):
        raise RecipeError(f"{shown} would have no effect: the stage has {steps} steps with it and without it.")
    warmup = LearningRate(stage=stage, steps=steps, steps_per_epoch=steps_per_epoch).warmup_steps
    if steps < progress.step or (is_finished and warmup > progress.step):
        raise RecipeError(
            f"the run in {directory.path} has done {progress.step} steps; {shown} would end it after {steps}, with "
            f"{warmup} steps of warm-up. {_advice(directory)}"
        )
    if stage.schedule != "constant":
        _LOG.info("%s: from step %d on, the learning rate is that of a run of %d steps.", shown, progress.step, steps)


def _listed(directory: RunDirectory, names: Iterable[str] | None = None) -> str:
    """The changed fields as they are written on the command line."""
    single = len(directory.recipe.stages) == 1
    shown = {name: name.removeprefix("stages.0.") if single else name for name in names or directory.changes}
    return ", ".join(
        "the edited recipe.json" if name == RECIPE_NAME else f"{field}={directory.changes[name][1]}"
        for name, field in shown.items()
    )


def _advice(directory: RunDirectory) -> str:
    number = len(directory.recipe.stages) - 1
    stage, prefix = (f"stage={number} ", f"stages.{number}.") if number else ("", "")
    return (
        f"Start a new run from its weights: mambar train {directory.recipe.name} {stage}{prefix}start_from="
        f"{directory.path} {prefix}epochs=N --out DIR."
    )
