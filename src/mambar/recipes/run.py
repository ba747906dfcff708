"""Functions that run and resume recipes. Torch is imported after the run directory is created."""

import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from mambar.recipes.index import get_recipe
from mambar.training.checkpoint.run_directory import read_recipe
from mambar.training.recipe import Recipe
from mambar.training.result import RunResult
from mambar.training.run import train


def run(
    recipe: Recipe | str,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    override: Iterable[str] = (),
) -> RunResult:
    """Trains a recipe, given as an object, a name or the path of a Python file; None keeps the recipe's own value.

    out: the run directory, by default runs/NAME-DATE-TIME; it must be new or empty unless `resume` is true. Raises the
    errors of `mambar.training.train`.
    """
    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    changes = {"data": None if data is None else str(data), "seed": seed, "precision": precision}
    chosen = chosen.replace(**{name: value for name, value in changes.items() if value is not None})
    return train(
        chosen,
        out=default_out(chosen.name) if out is None else out,
        device=device,
        workers=workers,
        resume=resume,
        override=override,
    )


def resume(
    out: str | Path,
    *,
    changes: Iterable[str] = (),
    data: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    override: Iterable[str] = (),
    accept_edited_recipe: bool = False,
) -> RunResult:
    """Resumes the run in `out`; `changes` are `field=value` texts. A finished run returns its result.

    Fields that change what was already computed must be named in `override`. `data` is the new path of the same data.
    accept_edited_recipe: resume although recipe.json was edited by hand; the change is recorded there.
    """
    out = Path(out)
    changes, moved = list(changes), data is not None
    stored = read_recipe(out, accept_edited=accept_edited_recipe)
    changed: dict[str, Any] = {"data": str(data)} if moved else {}
    asked = stored.with_overrides(changes).replace(**changed) if changes or moved else None
    # The content of the data is compared by fingerprint; only their path may change.
    allowed = [*override, "data"] if moved else list(override)
    return train(
        asked,
        out=out,
        device=device,
        workers=workers,
        resume=True,
        override=allowed,
        accept_edited_recipe=accept_edited_recipe,
    )


def default_out(name: str) -> Path:
    """runs/NAME-DATE-TIME; under torchrun the same name for all processes and restarts."""
    shared = os.environ.get("TORCHELASTIC_RUN_ID")
    stamp = shared[:16] if shared and shared != "none" else datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{name}-{stamp}"
