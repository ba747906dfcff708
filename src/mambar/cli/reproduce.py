"""`mambar reproduce`: a table or figure of the paper, ours beside theirs."""

from typing import Annotated, cast

import typer

from mambar.cli.arguments import AsJson, Assignments, parse, pick_device, print_json, whole_number


def reproduce(
    name: Annotated[str, typer.Argument(help="A table or figure; none or --list: all names.")] = "",
    assignments: Assignments = None,
    listing: Annotated[bool, typer.Option("--list", help="List the tables and figures.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a table or figure of the paper (budget=smoke|small|full data= seeds=0,1,2 jobs=1 device= out=).

    smoke proves the path on a CPU in minutes; small is comparable among its own rows only; full is the paper's data
    and recipe. What was not run says so.
    """
    from mambar.paper.claim import Budget
    from mambar.paper.index import module, names
    from mambar.paper.index import reproduce as run
    from mambar.paper.render import render

    if listing or not name:
        for known in names():
            typer.echo(f"{known:24} {module(known).TITLE}")
        return
    options = parse(assignments, allowed=("budget", "data", "seeds", "jobs", "device", "workers", "out"))
    fields = options.fields
    results = run(
        name,
        budget=cast(Budget, fields.get("budget", "smoke")),
        data=options.data,
        out=options.out or "runs/reproduce",
        device=pick_device(options.device),
        seeds=[whole_number("seeds", part) for part in fields.get("seeds", "0").split(",")],
        workers=options.workers or 0,
        jobs=whole_number("jobs", fields.get("jobs", "1"), 1),
    )
    if as_json:
        print_json([{"row": r.row, "column": r.column, "budget": r.budget, "mean": r.mean} for r in results])
        return
    typer.echo(render(module(name).CLAIMS, results))
