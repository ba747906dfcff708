"""`mambar recipe`: the pages of recipes, resolved."""

from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, Assignments, parse


def recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name; none or --list: all names.")] = "",
    assignments: Assignments = None,
    listing: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a recipe with any field changed, and where its values come from."""
    from mambar.recipes.index import names, page

    if listing or not name:
        for known in names():
            typer.echo(f"{known:16} {page(known).title}")
        return
    found = page(name)
    options = parse(assignments)
    resolved = found.recipe.with_text(options.assignments)
    changes = {key: value for key in ("data", "seed") if (value := getattr(options, key)) is not None}
    if options.precision != "auto":
        changes["precision"] = options.precision
    resolved = resolved.but(**changes)
    if as_json:
        typer.echo(resolved.to_json(), nl=False)
        return
    typer.echo(f"{found.title}\n")
    typer.echo(f"source    {found.source}\ncommand   {found.command}\nexpected  {found.expected}\n")
    for field, value in resolved.flat().items():
        note = found.not_published.get(field)
        typer.echo(f"{field:28} {value!r}" + (f"   (not published; ours: {note})" if note else ""))
