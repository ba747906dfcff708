"""`mambar reproduce`: tables and figures of the paper, published and measured."""

from typing import Annotated, cast

import typer

from mambar.cli.arguments import (
    AsJson,
    Device,
    Fields,
    MaxPixels,
    NumWorkers,
    Out,
    fields_with_max_pixels,
    numbers,
    print_json,
)
from mambar.cli.console import say_columns, say_table
from mambar.device import choose_device
from mambar.errors import InputError


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAMES",
            help="Tables or figures, or Python files of tables, comma-separated; without it all are listed.",
        ),
    ] = "",
    fields: Fields = None,
    listing: Annotated[bool, typer.Option("--list", help="List the tables and figures.")] = False,
    budget: Annotated[str, typer.Option(help="smoke: a test; small: small datasets; full: as in the paper.")] = "smoke",
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="Recipe of the networks, in place of that of the small budget.")
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="LIST", help="Comma-separated seeds.")] = "0",
    other_seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds of rows that are not compared.")
    ] = None,
    runs: Annotated[
        str | None, typer.Option(metavar="VIM,MAMBAR", help="Draw figures from these run folders; nothing is trained.")
    ] = None,
    more: Annotated[bool, typer.Option("--more", help="Also rows that the paper does not have.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Networks trained in parallel.")] = 1,
    minutes: Annotated[
        float | None, typer.Option(min=0.001, max=1e6, help="Time limit; refuse runs that do not fit.")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="With --minutes: train as many epochs as fit.")] = False,
    out: Out = None,
    device: Device = "auto",
    num_workers: NumWorkers = 0,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Measure tables or figures of the paper; print the paper's values, ours and the difference.

    NAME=VALUE sets a field of every recipe, for example data=PATH, epochs=20 or data_options.canvas=64. Cells
    that were not run are marked *not run*. Only full results are comparable with the paper's. The default of --out is
    runs/reproduce.
    """
    from mambar.paper.claim import Budget
    from mambar.paper.index import module, names
    from mambar.paper.index import reproduce_together as run
    from mambar.paper.render import table_cells

    if listing or not name:
        say_table((known, module(known).TITLE) for known in names())
        return
    given = fields_with_max_pixels(fields, max_pixels)
    if "seed" in given:
        raise InputError(f"seed={given['seed']}: a table takes several seeds; write --seeds {given['seed']}.")
    data = given.pop("data", None)
    results = run(
        name.split(","),
        budget=cast(Budget, budget),
        data=data,
        recipe=recipe,
        out=out or "runs/reproduce",
        device=choose_device(device),
        fields=[f"{field}={value}" for field, value in given.items()],
        seeds=list(numbers("--seeds", seeds, int)),
        other_seeds=other_seeds,
        runs=() if runs is None else runs.split(","),
        more=more,
        num_workers=num_workers or 0,
        jobs=jobs,
        minutes=minutes,
        fit=fit,
    )
    if as_json:
        every = [result for found in results.values() for result in found]
        print_json([{"row": r.row, "column": r.column, "budget": r.budget, "mean": r.mean} for r in every])
        return
    for part, found in results.items():
        typer.echo(f"{module(part).TITLE}\n")
        say_columns(*table_cells(module(part).CLAIMS, found))
