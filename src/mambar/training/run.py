"""Training of a recipe in a run directory. The directory is locked before torch is imported."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mambar.deprecated import LOADER_ARGUMENTS, accept_old_names
from mambar.errors import InputError
from mambar.messages import short_repr
from mambar.training.checkpoint.run_directory import open_run_directory
from mambar.training.distributed.environment import num_restarts, rank
from mambar.training.recipe import Recipe
from mambar.training.result import RunResult


@accept_old_names(LOADER_ARGUMENTS)
def train(
    recipe: Recipe | None,
    *,
    out: str | Path,
    data: Any = None,
    device: str = "auto",
    num_workers: int | None = None,
    resume: bool = False,
    override: Iterable[str] = (),
    accept_edited_recipe: bool = False,
) -> RunResult:
    """Runs all stages of `recipe` in the directory `out` and writes weights, curves and report there.

    data: dataset object in place of `recipe.data` (see `mambar.open_dataset`); a resumed run needs it again.
    resume: continue from the last valid checkpoint, or from the start if there is none. With `recipe` None the stored
    one is used. override: fields that may change in addition to `CHANGEABLE_FIELDS`.
    accept_edited_recipe: accept a recipe.json that was edited by hand; the change is recorded there.
    num_workers: data loader processes; None chooses by the number of cores.

    Under torchrun every rank calls this, and a restarted run resumes by itself. Raises InputError (nothing was
    changed), DiskError, NonFiniteError, or Stopped after a signal, each with the exit code of the command line.
    """
    out = Path(out).expanduser()
    num_workers = _num_workers(num_workers)
    again = resume or (num_restarts() > 0 and (out / "recipe.json").exists())
    directory = open_run_directory(
        out, recipe, resume=again, override=override, accept_edited_recipe=accept_edited_recipe, writes=rank() == 0
    )
    try:
        from mambar.training.loop.stages import run_stages

        return run_stages(directory, data=data, device=device, num_workers=num_workers)
    except InputError:
        directory.discard_if_unused()
        raise
    finally:
        directory.release()


def _num_workers(num_workers: int | None) -> int:
    if num_workers is not None:
        if not 0 <= num_workers <= 1024:
            raise InputError(f"num_workers={short_repr(num_workers)} is not allowed; use 0 to 1024.")
        return num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores_per_rank = cores // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    # With fewer than 4 cores the training itself needs them all.
    return 0 if cores_per_rank < 4 else min(cores_per_rank - 2, 16)
