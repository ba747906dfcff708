"""A training run from its recipe to its report. The directory is claimed before anything heavy is imported."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mambar.errors import InputError
from mambar.messages import short_repr
from mambar.training.checkpoint.run_directory import open_run_directory
from mambar.training.distributed.environment import num_restarts, rank
from mambar.training.recipe import Recipe
from mambar.training.result import RunResult


def train(
    recipe: Recipe | None,
    *,
    out: str | Path,
    data: Any = None,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    override: Iterable[str] = (),
    accept_edited_recipe: bool = False,
) -> RunResult:
    """Runs all stages of `recipe` in the directory `out` and writes weights, curves and report there.

    data: a dataset object in place of `recipe.data` (see `mambar.open_dataset`); a resumed run needs it again.
    resume: go on from the last good checkpoint (with none, from the start), with the recipe stored in `out` where
    `recipe` is None. override: fields that a resumed run may change beside those of `CHANGEABLE_FIELDS`.
    accept_edited_recipe: resume although recipe.json was edited by hand; the change is recorded there.
    workers: loader processes, None for a choice by machine. Under torchrun every process calls this; after a
    restart by torchrun the run goes on by itself. Raises InputError (nothing touched), DiskError,
    NonFiniteError, or Stopped after a signal, each with the exit code of the command line.
    """
    out = Path(out).expanduser()
    num_workers = _num_workers(workers)
    again = resume or (num_restarts() > 0 and (out / "recipe.json").exists())
    directory = open_run_directory(
        out,
        recipe,
        resume=again,
        override=override,
        accept_edited_recipe=accept_edited_recipe,
        writes=rank() == 0,
    )
    try:
        from mambar.training.loop.stages import run_stages

        return run_stages(directory, data=data, device=device, workers=num_workers)
    except InputError:
        directory.discard_if_unused()
        raise
    finally:
        directory.release()


def _num_workers(asked: int | None) -> int:
    if asked is not None:
        if not 0 <= asked <= 1024:
            raise InputError(f"workers={short_repr(asked)} is not allowed; it takes 0 to 1024.")
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    mine = cores // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    # On a small machine the network needs the cores itself.
    return 0 if mine < 4 else min(mine - 2, 16)
