"""Functions that run and resume recipes. Torch is imported after the run directory is created."""

import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from mambar.deprecated import LOADER_ARGUMENTS, accept_old_names
from mambar.recipes.index import get_recipe
from mambar.training.checkpoint.run_directory import read_recipe
from mambar.training.recipe import DATA_OBJECT, Recipe
from mambar.training.result import RunResult
from mambar.training.run import train


@accept_old_names(LOADER_ARGUMENTS)
def run(
    recipe: Recipe | str,
    *,
    data: Any = None,
    out: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str | None = None,
    num_workers: int | None = None,
    resume: bool = False,
    override: Iterable[str] = (),
) -> RunResult:
    """Trains a recipe, given as an object, a name or the path of a Python file; None keeps the recipe's own value.

    data: a name, a path, or a dataset object (see `mambar.open_dataset`); a resumed run needs the same object again.
    out: the run directory, by default runs/NAME-DATE-TIME; it must be new or empty unless `resume` is true. Raises the
    errors of `mambar.training.train`.
    """
    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    data, dataset = _name_of(data)
    changes = {"data": data, "seed": seed, "precision": precision}
    chosen = chosen.replace(**{name: value for name, value in changes.items() if value is not None})
    _register_tasks(chosen.task)
    return train(
        chosen,
        out=default_out(chosen.name) if out is None else out,
        data=dataset,
        device=device,
        num_workers=num_workers,
        resume=resume,
        override=override,
    )


@accept_old_names(LOADER_ARGUMENTS)
def resume(
    out: str | Path,
    *,
    changes: Iterable[str] = (),
    data: Any = None,
    device: str = "auto",
    num_workers: int | None = None,
    override: Iterable[str] = (),
    accept_edited_recipe: bool = False,
) -> RunResult:
    """Resumes the run in `out`; `changes` are `field=value` texts. A finished run returns its result.

    Fields that change what was already computed must be named in `override`. `data` is the new path of the same data.
    accept_edited_recipe: resume although recipe.json was edited by hand; the change is recorded there.
    """
    out = Path(out).expanduser()
    data, dataset = _name_of(data)
    changes, moved = list(changes), data is not None and dataset is None
    stored = read_recipe(out, accept_edited=accept_edited_recipe)
    # An unknown task is refused before the directory is locked.
    from mambar.recipes.tasks import task_class

    task_class(stored.task)
    changed: dict[str, Any] = {"data": str(data)} if moved else {}
    asked = stored.with_overrides(changes).replace(**changed) if changes or moved else None
    # The content of the data is compared by fingerprint; only their path may change.
    allowed = [*override, "data"] if moved else list(override)
    _register_tasks(stored.task)
    return train(
        asked,
        out=out,
        data=dataset,
        device=device,
        num_workers=num_workers,
        resume=True,
        override=allowed,
        accept_edited_recipe=accept_edited_recipe,
    )


def _name_of(data: Any) -> tuple[str | None, Any]:
    """(what the recipe stores, the dataset object or None)."""
    if data is None or isinstance(data, str | Path):
        return None if data is None else str(data), None
    kind = type(data["train"] if isinstance(data, Mapping) and "train" in data else data)
    return f"{DATA_OBJECT}{kind.__module__}.{kind.__qualname__}", data


def _register_tasks(task: str) -> None:
    """Registers the tasks of higher packages, which imports torch; classification is registered by training."""
    if task != "classification":
        import mambar.recipes.tasks  # noqa: F401


def default_out(name: str) -> Path:
    """runs/NAME-DATE-TIME; under torchrun the same name for all processes and restarts."""
    shared = os.environ.get("TORCHELASTIC_RUN_ID")
    stamp = shared[:16] if shared and shared != "none" else datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{name}-{stamp}"
