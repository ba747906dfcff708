"""Trains the cells of ablation tables: one resumable run directory per cell and seed, optionally in parallel."""

import hashlib
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mambar.atomic_files import write_atomically
from mambar.errors import InputError, MambarError
from mambar.hub.config_file import json_bytes
from mambar.memory import keep_freed_memory
from mambar.models.config import VARIANTS
from mambar.paper.context import Context
from mambar.paper.networks import model_config
from mambar.recipes.tasks import task_class
from mambar.training.recipe import Recipe

logger = logging.getLogger("mambar.paper")

_DONE = "cell.json"
# Seconds that a stopped run has to save before it is killed.
_STOP_TIMEOUT = 60.0

# Row → seed → metric in percent.
Table = dict[str, dict[int, float]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row to train."""

    row: str
    recipe: Recipe
    # True for rows of the compared claim, which get every seed; others get `Context.other_seeds` of them.
    compared: bool = True


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run: a recipe with its seed, and its directory."""

    title: str
    recipe: Recipe
    directory: Path


def train_cells(cells: Sequence[Cell], context: Context, *, finished: Callable[[], None] | None = None) -> Table:
    """Trains every cell with its seeds and returns row → seed → task metric in percent.

    Finished runs are read from their directories, unfinished ones resumed. Cells with equal recipes share their runs,
    across tables too. With `jobs` > 1 each run is a process, spread evenly over the GPUs. At the context's deadline
    runs are stopped and saved, and are missing in the table. `finished` is called after each run.

    Raises `InputError` if a directory holds another recipe, and the first error of a run after all others ended.
    """
    rows = [cell.row for cell in cells]
    if len(set(rows)) != len(rows):
        raise InputError(f"two cells have the same row name: {', '.join(rows)}.")
    work = list(planned_runs(cells, context).values())
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(context.jobs):
        slots.put(slot)

    def one(item: PlannedRun) -> Exception | None:
        slot = slots.get()
        try:
            error = None
            if not (item.directory / _DONE).is_file() and _remaining_seconds(context) != 0:
                error = _run_here(item, context) if context.jobs == 1 else _run_subprocess(item, slot, context)
        finally:
            slots.put(slot)
        if error is None and finished is not None:
            finished()
        return error

    if context.jobs == 1:
        errors = [one(item) for item in work]
    else:
        with ThreadPoolExecutor(context.jobs) as pool:
            errors = list(pool.map(one, work))
    failed = [error for error in errors if error is not None]
    if failed:
        raise failed[0]
    return finished_results(cells, context)


def finished_results(cells: Sequence[Cell], context: Context) -> Table:
    """Row → seed → task metric in percent, of finished runs only."""
    table: Table = {}
    for cell in cells:
        for seed in seeds_of(cell, context):
            recipe = cell.recipe.replace(seed=seed)
            value = _finished_metric(directory_of(cell, seed, context), recipe)
            if value is not None:
                table.setdefault(cell.row, {})[seed] = value
    return table


def planned_runs(cells: Sequence[Cell], context: Context) -> dict[Path, PlannedRun]:
    """The distinct runs of the cells by directory, most registers first."""
    found: dict[Path, PlannedRun] = {}
    for cell in cells:
        for seed in seeds_of(cell, context):
            directory = directory_of(cell, seed, context)
            title, recipe = f"{cell.row}, seed {seed}", cell.recipe.replace(seed=seed)
            found.setdefault(directory, PlannedRun(title=title, recipe=recipe, directory=directory))
    return dict(sorted(found.items(), key=lambda item: -_num_registers(item[1].recipe)))


def _num_registers(recipe: Recipe) -> int:
    return model_config(recipe).num_registers if recipe.model in VARIANTS else 0


def seeds_of(cell: Cell, context: Context) -> Sequence[int]:
    """The seeds of a cell: all, or the first `other_seeds` if the row is not compared."""
    return context.seeds if cell.compared else context.seeds[: context.other_seeds]


def directory_of(cell: Cell, seed: int, context: Context) -> Path:
    """The run directory of a recipe and seed, the same for every table."""
    words = cell.recipe.model
    if words in VARIANTS:
        config = model_config(cell.recipe)
        words = f"n{config.num_registers}-{config.placement}-{config.head}"
    plain = json.loads(cell.recipe.replace(seed=0).to_json())
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]
    return context.directory / "cells" / f"{re.sub(r'[^a-z0-9-]', '-', words)}-{digest}-seed{seed}"


def gpus() -> list[str]:
    """The GPUs that runs may use, in the notation of CUDA_VISIBLE_DEVICES."""
    given = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    if given:
        return given
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def start(work: PlannedRun, slot: int, context: Context) -> subprocess.Popen[bytes]:
    """Starts a process that runs one recipe on the slot's GPU; its output goes to DIRECTORY.log."""
    directory = work.directory
    asked = directory.with_name(f"{directory.name}.recipe.json")
    asked.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(asked, work.recipe.to_json().encode())
    program = "import sys; from mambar.paper.sweep import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(asked), str(directory), context.device]
    with directory.with_name(f"{directory.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, str(context.num_workers)],
            env=_environment(slot, context.device),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def last_log_line(work: PlannedRun) -> str:
    """The last line of a run's log."""
    path = work.directory.with_name(f"{work.directory.name}.log")
    lines = path.read_text("utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "no message"


def _finished_metric(directory: Path, recipe: Recipe) -> float | None:
    """The metric of a finished run; None if it is not finished. Raises `InputError` for another recipe."""
    path = directory / _DONE
    if not path.is_file():
        return None
    content = json.loads(path.read_text("utf-8"))
    if content["recipe"] != json.loads(recipe.to_json()):
        raise InputError(f"{directory} holds a run of another recipe; choose another --out or remove it.")
    return float(content["metrics"][task_class(recipe.task).metric]) * 100


def _run(recipe: Recipe, directory: Path, device: str, num_workers: int) -> None:
    """Trains or resumes one recipe, and writes the file that marks it as finished."""
    from mambar.recipes.run import run

    begun = (directory / "recipe.json").is_file()
    result = run(recipe, out=directory, device=device, num_workers=num_workers, resume=begun)
    content = {"format_version": 1, "recipe": json.loads(recipe.to_json()), "metrics": dict(result.metrics)}
    write_atomically(directory / _DONE, json_bytes(content))


def _run_here(work: PlannedRun, context: Context) -> Exception | None:
    try:
        logger.info("%s", work.title)
        _run(work.recipe, work.directory, context.device, context.num_workers)
    except MambarError as error:
        return error
    return None


def _run_subprocess(work: PlannedRun, slot: int, context: Context) -> Exception | None:
    """Runs in a separate process; at the deadline it is asked to save and stop."""
    process = start(work, slot, context)
    try:
        code = process.wait(_remaining_seconds(context))
    except subprocess.TimeoutExpired:
        stop([process])
        logger.warning("%s: the time limit is reached; run again with more minutes to continue.", work.title)
        return None
    except BaseException:
        stop([process])
        raise
    if code:
        return MambarError(f"{work.title}: exit code {code}: {last_log_line(work)}")
    logger.info("%s: done", work.title)
    return None


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks processes to save and stop; kills them after a minute."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    until = time.monotonic() + _STOP_TIMEOUT
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _remaining_seconds(context: Context) -> float | None:
    """Seconds until the deadline, at least 0; None without a deadline."""
    return None if context.deadline is None else max(0.0, context.deadline - time.monotonic())


def _environment(slot: int, device: str) -> Mapping[str, str]:
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", "1")
    known = gpus() if device == "cuda" else []
    if known:
        environment["CUDA_VISIBLE_DEVICES"] = known[slot % len(known)]
    return environment


def main(arguments: Sequence[str]) -> int:
    """The program that `start` runs: one run, its recipe read from a file."""
    asked, directory, device, num_workers = arguments
    keep_freed_memory()
    recipe = Recipe.from_json(Path(asked).read_text("utf-8"), source=asked)
    try:
        _run(recipe, Path(directory), device, int(num_workers))
    except MambarError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0
