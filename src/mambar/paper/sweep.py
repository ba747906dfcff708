"""The ablation runner: one run directory a choice and seed, resumable, side by side where asked."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mambar.errors import InputError, MambarError
from mambar.hub.config_file import json_bytes
from mambar.hub.files import write_atomically
from mambar.memory import keep_freed_memory
from mambar.models.config import variant
from mambar.paper.context import Context
from mambar.training.recipe import Recipe
from mambar.training.task import task_class

logger = logging.getLogger("mambar.paper")

_DONE = "cell.json"
# A stopped cell saves before it ends; longer than this it is not waited for, seconds.
_PATIENCE = 60.0

# Row → seed → metric in percent.
Table = dict[str, dict[int, float]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One choice to train: a row's name, and the recipe that makes it.

    decides: a row that a conclusion hangs on gets every seed; the others get `Context.other_seeds` of them.
    """

    row: str
    recipe: Recipe
    decides: bool = True


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run: a recipe with its seed, and where it lies."""

    title: str
    recipe: Recipe
    directory: Path


def train_cells(
    cells: Sequence[Cell],
    context: Context,
    *,
    finished: Callable[[], None] | None = None,
) -> Table:
    """Trains every cell with its seeds; gives row → seed → the metric of its task in percent.

    Finished runs are read from their directories, unfinished ones resumed; two cells of one recipe share their runs,
    also over tables. With `jobs` > 1 runs are separate processes, spread evenly over the GPUs. Past the context's
    deadline they are stopped, saved, and missing in the table. `finished` is called after each run.

    Raises `InputError` where a directory holds another recipe, and the first error of a run after all others have
    ended.
    """
    _refuse_twins(cells)
    work = list(runs(cells, context).values())
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(context.jobs):
        slots.put(slot)

    def one(item: Work) -> Exception | None:
        slot = slots.get()
        try:
            error = _run_here(item, context) if context.jobs == 1 else _run_apart(item, slot, context)
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
    return recorded(cells, context)


def recorded(cells: Sequence[Cell], context: Context) -> Table:
    """What is finished: row → seed → the metric of its task in percent; a row without a finished run is left out."""
    table: Table = {}
    for cell in cells:
        for seed in seeds_of(cell, context):
            recipe = cell.recipe.replace(seed=seed)
            value = _recorded(directory_of(cell, seed, context), recipe)
            if value is not None:
                table.setdefault(cell.row, {})[seed] = value
    return table


def runs(cells: Sequence[Cell], context: Context) -> dict[Path, Work]:
    """The different runs of some cells by their directories, the longest sequences (most registers) first."""
    found: dict[Path, Work] = {}
    for cell in cells:
        for seed in seeds_of(cell, context):
            directory = directory_of(cell, seed, context)
            work = Work(title=f"{cell.row}, seed {seed}", recipe=cell.recipe.replace(seed=seed), directory=directory)
            found.setdefault(directory, work)
    return dict(sorted(found.items(), key=lambda item: -_num_registers(item[1].recipe)))


def seeds_of(cell: Cell, context: Context) -> tuple[int, ...]:
    """The seeds of a cell: all, or the first few of a row that decides nothing."""
    return context.seeds if cell.decides else context.seeds[: context.other_seeds]


def directory_of(cell: Cell, seed: int, context: Context) -> Path:
    """The run directory of one recipe and seed, the same from every table that asks for it."""
    config = variant(cell.recipe.model).replace(**cell.recipe.config)
    words = f"n{config.num_registers}-{config.placement}-{config.head}"
    plain = json.loads(cell.recipe.replace(seed=0).to_json())
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]
    return context.out / "cells" / f"{re.sub(r'[^a-z0-9-]', '-', words)}-{digest}-seed{seed}"


def gpus() -> list[str]:
    """The GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them."""
    given = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return given or list(_visible())


def start(work: Work, slot: int, context: Context) -> subprocess.Popen[bytes]:
    """A process that runs one recipe, on the GPU that the slot belongs to; it writes into DIRECTORY.log."""
    directory = work.directory
    asked = directory.with_name(f"{directory.name}.recipe.json")
    asked.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(asked, work.recipe.to_json().encode())
    program = "import sys; from mambar.paper.sweep import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(asked), str(directory), context.device]
    with directory.with_name(f"{directory.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, str(context.workers)],
            env=_environment(slot, context.device),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def last_words(work: Work) -> str:
    """The last line of a run's log."""
    path = work.directory.with_name(f"{work.directory.name}.log")
    lines = path.read_text("utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "no message"


def _num_registers(recipe: Recipe) -> int:
    return variant(recipe.model).replace(**recipe.config).num_registers


def _refuse_twins(cells: Sequence[Cell]) -> None:
    rows = [cell.row for cell in cells]
    if len(set(rows)) != len(rows):
        raise InputError(f"two cells have one name: {', '.join(rows)}.")


def _recorded(directory: Path, recipe: Recipe) -> float | None:
    """The metric of a finished run, if its recipe is this one."""
    path = directory / _DONE
    if not path.is_file():
        return None
    content = json.loads(path.read_text("utf-8"))
    if content["recipe"] != json.loads(recipe.to_json()):
        raise InputError(f"{directory} holds a cell of another recipe; choose another out= or remove it.")
    return float(content["metrics"][task_class(recipe.task).metric]) * 100


def _run(recipe: Recipe, directory: Path, device: str, workers: int) -> None:
    """Trains one recipe, or goes on with it, and writes down that it is finished."""
    from mambar.recipes.run import run

    begun = (directory / "recipe.json").is_file()
    result = run(recipe, out=directory, device=device, workers=workers, resume=begun)
    content = {"format_version": 1, "recipe": json.loads(recipe.to_json()), "metrics": dict(result.metrics)}
    write_atomically(directory / _DONE, json_bytes(content))


def _run_here(work: Work, context: Context) -> Exception | None:
    try:
        if (work.directory / _DONE).is_file() or _left(context) == 0:
            return None
        logger.info("%s", work.title)
        _run(work.recipe, work.directory, context.device, context.workers)
    except MambarError as error:
        return error
    return None


def _run_apart(work: Work, slot: int, context: Context) -> Exception | None:
    """The same in a process of its own; at the deadline it is asked to save and end."""
    if (work.directory / _DONE).is_file() or _left(context) == 0:
        return None
    process = start(work, slot, context)
    try:
        code = process.wait(_left(context))
    except subprocess.TimeoutExpired:
        stop([process])
        logger.warning("%s: time is up; start again with more minutes to go on.", work.title)
        return None
    except BaseException:
        stop([process])
        raise
    if code:
        return MambarError(f"{work.title}: exit code {code}: {last_words(work)}")
    logger.info("%s: done", work.title)
    return None


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks processes to save and end; after a minute they are killed."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    until = time.monotonic() + _PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _left(context: Context) -> float | None:
    """Seconds to the deadline, 0 past it; None without one."""
    return None if context.deadline is None else max(0.0, context.deadline - time.monotonic())


def _environment(slot: int, device: str) -> Mapping[str, str]:
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", "1")
    known = gpus() if device == "cuda" else []
    if known:
        environment["CUDA_VISIBLE_DEVICES"] = known[slot % len(known)]
    return environment


def _visible() -> Iterator[str]:
    import torch

    yield from map(str, range(torch.cuda.device_count()))


def main(arguments: Sequence[str]) -> int:
    """What `start` starts: one run, its recipe read from a file."""
    asked, directory, device, workers = arguments
    keep_freed_memory()
    recipe = Recipe.from_json(Path(asked).read_text("utf-8"), source=asked)
    try:
        _run(recipe, Path(directory), device, int(workers))
    except MambarError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0
