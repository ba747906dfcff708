"""`mambar reproduce`: a table or figure of the paper, ours beside theirs."""

from typing import Annotated, cast

import typer

from mambar.cli.arguments import AsJson, Assignments, parse, print_json, truth, whole_number
from mambar.device import choose_device
from mambar.errors import InputError

_OWN = ("budget", "seeds", "other_seeds", "more", "jobs", "minutes", "fit")


def reproduce(
    name: Annotated[str, typer.Argument(help="Tables or figures, separated by commas; none or --list: names.")] = "",
    assignments: Assignments = None,
    listing: Annotated[bool, typer.Option("--list", help="List the tables and figures.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure tables or figures of the paper (budget=smoke|small|full data= seeds=0,1,2 jobs=1 device= out=).

    smoke proves the path on a CPU in minutes; small is comparable among its own rows only; full is the paper's data
    and recipe. What was not run says so. other_seeds=1: seeds of the rows that decide nothing; more=true: rows beyond
    the paper's; minutes=8: refuse what does not fit, or with fit=true train as many epochs as do. Everything else is a
    field of the recipes, as epochs=20 or data_options.canvas=64.
    """
    from mambar.paper.claim import Budget
    from mambar.paper.index import module, names
    from mambar.paper.index import reproduce_together as run
    from mambar.paper.render import render

    if listing or not name:
        for known in names():
            typer.echo(f"{known:24} {module(known).TITLE}")
        return
    options = parse(assignments)
    if options.seed is not None:
        raise InputError(f"seed={options.seed}: a table takes several; write seeds={options.seed}.")
    given = {key: options.fields[key] for key in _OWN if key in options.fields}
    fields = [f"{key}={value}" for key, value in options.fields.items() if key not in _OWN]
    if options.precision != "auto":
        fields.append(f"precision={options.precision}")
    results = run(
        name.split(","),
        budget=cast(Budget, given.get("budget", "smoke")),
        data=options.data,
        out=options.out or "runs/reproduce",
        device=choose_device(options.device),
        fields=fields,
        seeds=[whole_number("seeds", part) for part in given.get("seeds", "0").split(",")],
        other_seeds=whole_number("other_seeds", given["other_seeds"], 1) if "other_seeds" in given else None,
        more=truth("more", given.get("more", "false")),
        workers=options.workers or 0,
        jobs=whole_number("jobs", given.get("jobs", "1"), 1),
        minutes=_minutes(given["minutes"]) if "minutes" in given else None,
        fit=truth("fit", given.get("fit", "false")),
    )
    if as_json:
        every = [result for found in results.values() for result in found]
        print_json([{"row": r.row, "column": r.column, "budget": r.budget, "mean": r.mean} for r in every])
        return
    for part, found in results.items():
        typer.echo(f"{module(part).TITLE}\n\n{render(module(part).CLAIMS, found)}")


def _minutes(value: str) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise InputError(f"minutes={value!r} must be a number.") from error
    if not 0 < number < 1e6:
        raise InputError(f"minutes={value} must be above 0.")
    return number
