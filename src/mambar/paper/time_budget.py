"""Cost of a set of runs: images, and minutes at a speed measured by a short trial."""

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mambar.errors import InputError, MambarError
from mambar.paper.context import Context
from mambar.paper.sweep import Cell, PlannedRun, last_log_line, planned_runs, start, stop
from mambar.recipes.tasks import task_class
from mambar.training.metrics_log import read_metrics
from mambar.training.recipe import Recipe

logger = logging.getLogger("mambar.paper")

# Share of the given minutes that is planned for training steps; the rest is evaluation, saving and start-up.
_TRAINING_SHARE = 0.85
# Seconds that the trial measures after every run has made its first steps, and the time limit for these.
_TRIAL_SECONDS, _START_TIMEOUT = 10.0, 180.0


def with_deadline(cells: Callable[[Context], Sequence[Cell]], context: Context) -> Context:
    """The context with the deadline of its `minutes`, and with `fit` the number of epochs that fit; logs the cost.

    Raises `InputError` if the runs do not fit without `fit`, or if not even one epoch fits.
    """
    started = time.monotonic()
    work = [
        item for item in planned_runs(cells(context), context).values() if not (item.directory / "cell.json").is_file()
    ]
    if not work:
        return context
    an_epoch = _images_of_an_epoch(work)
    epochs = max(sum(stage.epochs for stage in item.recipe.stages) for item in work)
    logger.info("%d runs of %d epochs: %.2f million images", len(work), epochs, an_epoch * epochs / 1e6)
    minutes = context.minutes
    if minutes is None:
        if context.fit:
            raise InputError("--fit needs --minutes; give the time for training.")
        return context
    rate = measured_rate(work, context)
    deadline = started + 60 * minutes
    can = math.floor(_TRAINING_SHARE * (deadline - time.monotonic()) * rate / an_epoch)
    needed = an_epoch * epochs / rate / _TRAINING_SHARE / 60
    logger.info("%.0f images/s with %d in parallel: about %.1f minutes", rate, min(context.jobs, len(work)), needed)
    if can < 1 or (epochs > can and not context.fit):
        hint = f"epochs={can} fit" if can else "take fewer runs or a faster machine"
        raise InputError(f"the runs need about {needed:.1f} minutes, --minutes is {minutes:g}; {hint}.")
    if context.fit:
        logger.info("%d epochs fit into %g minutes", can, minutes)
        context = replace(context, fields=(*context.fields, f"epochs={can}"))
    return replace(context, deadline=deadline)


def measured_rate(work: Sequence[PlannedRun], context: Context) -> float:
    """Training images per second of all parallel runs together, measured for ten seconds after their first steps.

    The trial uses a temporary directory.
    """
    context.directory.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="trial-", dir=context.directory))
    trial = [
        replace(item, recipe=_endless(item.recipe), directory=place / str(number))
        for number, item in enumerate(work[: context.jobs])
    ]
    processes = [start(item, slot, context) for slot, item in enumerate(trial)]
    try:
        until = time.monotonic() + _START_TIMEOUT
        # Skip the batches that were prepared while the network was built: two per loader process.
        while not all(_steps(item) > 2 * context.num_workers for item in trial):
            for item, process in zip(trial, processes, strict=True):
                if process.poll() is not None:
                    raise MambarError(f"{item.title}: the trial ended: {last_log_line(item)}")
            if time.monotonic() > until:
                raise MambarError(f"the trial made too few steps within {_START_TIMEOUT:.0f} s; try fewer jobs.")
            time.sleep(0.5)
        before, since = [_steps(item) for item in trial], time.monotonic()
        time.sleep(_TRIAL_SECONDS)
        after, seconds = [_steps(item) for item in trial], time.monotonic() - since
    finally:
        for process in processes:
            process.kill()
        stop(processes)
        shutil.rmtree(place, ignore_errors=True)
    images = [
        (last - first) * item.recipe.stages[0].batch_size
        for item, first, last in zip(trial, before, after, strict=True)
    ]
    # If all runs are in parallel, the slowest determines the time.
    made = len(images) * min(images) if len(trial) == len(work) else sum(images)
    if not made:
        raise MambarError("the trial made no steps while it was measured; give more minutes or fewer jobs.")
    return made / seconds


def _endless(recipe: Recipe) -> Recipe:
    """The recipe with frequent logging and without evaluation or saving."""
    layer_stats = None if recipe.health_every is None else min(recipe.health_every, 20)
    return recipe.replace(epochs=1000, log_every=2, eval_every=1000, save_every=10**9, health_every=layer_stats)


def _steps(work: PlannedRun) -> int:
    rows = [row["step"] for row in read_metrics(work.directory / "metrics.jsonl") if row["kind"] == "training"]
    return max(rows, default=0)


def _images_of_an_epoch(work: Sequence[PlannedRun]) -> int:
    """Training images of one epoch of all runs together."""
    counted: dict[str, int] = {}
    total = 0
    for item in work:
        recipe = item.recipe
        of_data = repr((recipe.data, sorted(recipe.data_options.items(), key=str)))
        if of_data not in counted:
            counted[of_data] = len(task_class(recipe.task).open_dataset(recipe, "train"))
        total += counted[of_data]
    return total
