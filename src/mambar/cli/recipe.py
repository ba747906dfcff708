"""`mambar recipe`: list the recipes, or print one with all its fields."""

from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, Fields, named_values
from mambar.cli.console import say_table
from mambar.training.recipe import Recipe


def recipe(
    name: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe's name; without it all names are listed.")
    ] = "",
    fields: Fields = None,
    listing: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    images: Annotated[int | None, typer.Option(min=1, help="Training images, to compute the cost.")] = None,
    speed: Annotated[
        float | None, typer.Option(min=0.001, help="Measured images/s of the first stage, to compute hours.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a recipe, the sources of its values, and its cost.

    NAME=VALUE changes fields. --speed is the images/s that a run prints and writes to metrics.jsonl.
    """
    from mambar.recipes.index import get_entry, recipe_names

    if listing or not name:
        say_table((known, get_entry(known).title) for known in recipe_names())
        return
    found = get_entry(name)
    resolved = found.recipe.with_overrides(f"{field}={value}" for field, value in named_values(fields).items())
    if as_json:
        typer.echo(resolved.to_json(), nl=False)
        return
    typer.echo(f"{found.title}\n")
    head = [("source", found.source), ("command", found.command), ("expected", found.expected)]
    say_table([*head, *_costs(resolved, images, speed)])
    typer.echo()
    notes = {field: f"   (not published; ours: {note})" for field, note in found.not_published.items()}
    say_table((field, f"{value!r}{notes.get(field, '')}") for field, value in resolved.to_flat_dict().items())


def _costs(resolved: Recipe, images: int | None, speed: float | None) -> list[tuple[str, str]]:
    from mambar.recipes.cost import cost, stage_costs, training_images

    if images is None and training_images(resolved) is None:
        return [("cost", "depends on the number of training images: give --images")]
    rows = [("cost", cost(resolved, num_images=images, images_per_second=speed).line())]
    if len(resolved.stages) > 1:
        parts = stage_costs(resolved, num_images=images, images_per_second=speed)
        rows += [(f"  {stage.name}", part.line()) for stage, part in zip(resolved.stages, parts, strict=True)]
    return rows
