"""`mambar train`: train a recipe, or resume a run."""

from pathlib import Path
from typing import Annotated

import typer

from mambar.cli.arguments import (
    AsJson,
    Device,
    Fields,
    MaxPixels,
    NumWorkers,
    Out,
    Processes,
    fields_with_max_pixels,
    print_json,
)
from mambar.cli.console import say
from mambar.cli.torchrun import under_torchrun
from mambar.errors import InputError
from mambar.user_module import import_file, is_python_file


def train(
    name: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe's name (mambar recipe --list), or a Python file with RECIPE."),
    ] = "",
    fields: Fields = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Resume the run in DIR.")] = None,
    override: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="With --resume: allow this field to change.")
    ] = None,
    accept_edited_recipe: Annotated[
        bool, typer.Option("--accept-edited-recipe", help="With --resume: accept a recipe.json that was edited.")
    ] = False,
    device: Device = "auto",
    num_workers: NumWorkers = None,
    max_pixels: MaxPixels = None,
    processes: Processes = 1,
    restarts: Annotated[int, typer.Option("--max-restarts", min=0, help="With --processes: restarts allowed.")] = 0,
    as_json: AsJson = False,
) -> int:
    """Train a recipe, or resume a run.

    NAME=VALUE sets a field of the recipe: data=PATH, epochs=10, seed=1, config.depth=12 (mambar recipe RECIPE lists
    them).

    \b
    Examples:
      mambar train digits epochs=10
      mambar train folder data=PATH --out pets
      mambar train --resume pets
    """
    assignments = [*([name] if "=" in name else []), *(fields or [])]
    name = "" if "=" in name else name
    given = fields_with_max_pixels(assignments, max_pixels)
    if resume is None and not name:
        raise InputError("train needs a recipe's name or --resume DIR; mambar recipe --list shows the names.")
    if resume is not None and is_python_file(name):
        # The file may register the task or dataset of the run; its recipe is the stored one.
        import_file(name)
        name = ""
    if resume is not None and name:
        raise InputError(f"--resume {resume} uses that run's own recipe; omit the name {name!r}.")
    if resume is not None and out is not None:
        raise InputError(f"--resume {resume} continues in that directory; omit --out {out}.")
    if processes > 1:
        return under_torchrun(processes, restarts)

    from mambar.recipes.run import resume as resume_run
    from mambar.recipes.run import run
    from mambar.training.distributed.environment import rank
    from mambar.training.loop.signals import Stopped

    shared = {"device": device, "num_workers": num_workers}
    try:
        if resume is not None:
            data = given.pop("data", None)
            changes = [f"{field}={value}" for field, value in given.items()]
            allowed = {"override": override or (), "accept_edited_recipe": accept_edited_recipe}
            result = resume_run(resume, changes=changes, data=data, **allowed, **shared)
        else:
            from mambar.recipes.index import get_recipe

            chosen = get_recipe(name).with_overrides(f"{field}={value}" for field, value in given.items())
            result = run(chosen, out=out, **shared)
    except Stopped as stopped:
        # Every rank raises the same message; rank 0 prints it.
        if rank() == 0:
            raise
        return stopped.exit_code
    if as_json:
        tested = None if result.test_metrics is None else dict(result.test_metrics)
        numbers = {"metrics": dict(result.metrics), "step": result.step, "test_metrics": tested}
        print_json({"directory": str(result.directory), **numbers})
    elif rank() == 0:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        say(f"{result.directory}: {numbers}")
        if result.origin:
            say(result.describe())
        say(f"report: {result.directory / 'report.html'}")
    return 0
