"""The ablation runner: one run directory a cell and seed, resumable, side by side where asked."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mambar.errors import InputError, MambarError
from mambar.hub.files import json_bytes, write_atomically
from mambar.paper.context import Context
from mambar.training.recipe import Recipe

logger = logging.getLogger("mambar.paper")

_DONE = "cell.json"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One choice to train: a row's name, and the recipe that makes it."""

    row: str
    recipe: Recipe


def train_cells(cells: Sequence[Cell], context: Context, *, metric: str = "top1") -> dict[str, dict[int, float]]:
    """Trains every cell with every seed; gives row → seed → metric in percent.

    Finished cells are read from their directories, unfinished ones resumed. With `jobs` > 1 cells run as separate
    processes, each on the GPU whose turn it is. Raises `InputError` where a directory holds another recipe, and the
    first error of a cell after all others have run.
    """
    _refuse_twins(cells)
    work = [(cell, seed) for cell in cells for seed in context.seeds]
    if context.jobs == 1:
        found = [_run_here(cell, seed, context, metric) for cell, seed in work]
    else:
        with ThreadPoolExecutor(context.jobs) as pool:
            turns = [
                pool.submit(_run_apart, cell, seed, turn, context, metric) for turn, (cell, seed) in enumerate(work)
            ]
            found = [turn.result() for turn in turns]
    failed = [error for error in found if isinstance(error, Exception)]
    if failed:
        raise failed[0]
    table: dict[str, dict[int, float]] = {}
    for (cell, seed), value in zip(work, found, strict=True):
        assert isinstance(value, float)
        table.setdefault(cell.row, {})[seed] = value
    return table


def directory_of(cell: Cell, seed: int, context: Context) -> Path:
    """The run directory of one cell and seed."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in cell.row)
    return context.out / context.name / f"{name}-seed{seed}"


def _refuse_twins(cells: Sequence[Cell]) -> None:
    rows = [cell.row for cell in cells]
    if len(set(rows)) != len(rows):
        raise InputError(f"two cells have one name: {', '.join(rows)}.")


def _recorded(directory: Path, recipe: Recipe, metric: str) -> float | None:
    """The metric of a finished cell, if its recipe is this one."""
    path = directory / _DONE
    if not path.is_file():
        return None
    content = json.loads(path.read_text("utf-8"))
    if content["recipe"] != json.loads(recipe.to_json()):
        raise InputError(f"{directory} holds a cell of another recipe; choose another out= or remove it.")
    return float(content["metrics"][metric]) * 100


def _run_here(cell: Cell, seed: int, context: Context, metric: str) -> float | Exception:
    from mambar.recipes.run import run

    directory = directory_of(cell, seed, context)
    recipe = cell.recipe.but(seed=seed)
    try:
        known = _recorded(directory, recipe, metric)
        if known is not None:
            return known
        logger.info("%s: seed %d", cell.row, seed)
        begun = (directory / "recipe.json").is_file()
        result = run(recipe, out=directory, device=context.device, workers=context.workers, resume=begun)
    except MambarError as error:
        return error
    content = {"format_version": 1, "recipe": json.loads(recipe.to_json()), "metrics": dict(result.metrics)}
    write_atomically(directory / _DONE, json_bytes(content))
    return float(result.metrics[metric]) * 100


def _run_apart(cell: Cell, seed: int, turn: int, context: Context, metric: str) -> float | Exception:
    """The same in a process of its own, on the GPU whose turn it is."""
    directory = directory_of(cell, seed, context)
    recipe = cell.recipe.but(seed=seed)
    try:
        known = _recorded(directory, recipe, metric)
    except InputError as error:
        return error
    if known is not None:
        return known
    asked = context.out / context.name / f"{directory.name}.recipe.json"
    asked.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(asked, recipe.to_json().encode())
    command = [sys.executable, "-m", "mambar.paper.sweep", str(asked), str(directory), context.device, metric]
    done = subprocess.run(
        [*command, str(context.workers)],
        env=_environment(turn, context.device),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return MambarError(f"{cell.row}, seed {seed}: exit code {done.returncode}: {last}")
    known = _recorded(directory, recipe, metric)
    return known if known is not None else MambarError(f"{cell.row}, seed {seed}: nothing was recorded.")


def _environment(turn: int, device: str) -> Mapping[str, str]:
    environment = dict(os.environ)
    if device == "cuda":
        given = [part for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
        gpus = given or list(_gpus())
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[turn % len(gpus)]
    else:
        environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


def _gpus() -> Iterator[str]:
    import torch

    yield from map(str, range(torch.cuda.device_count()))


def _as_process(arguments: Sequence[str]) -> int:
    """What `_run_apart` starts: one cell, its recipe read from a file."""
    asked, directory, device, metric, workers = arguments
    recipe = Recipe.from_json(Path(asked).read_text("utf-8"), source=asked)
    from mambar.recipes.run import run

    begun = (Path(directory) / "recipe.json").is_file()
    try:
        result = run(recipe, out=directory, device=device, workers=int(workers), resume=begun)
    except MambarError as error:
        logger.error("%s", error)
        return error.exit_code
    content = {"format_version": 1, "recipe": json.loads(recipe.to_json()), "metrics": dict(result.metrics)}
    write_atomically(Path(directory) / _DONE, json_bytes(content))
    return 0 if metric in result.metrics else 1


if __name__ == "__main__":
    sys.exit(_as_process(sys.argv[1:]))
