"""Tables and figures by name, and their reproduction."""

import importlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from mambar.analysis.draw.plots import png
from mambar.atomic_files import write_files
from mambar.deprecated import LOADER_ARGUMENTS, accept_old_names
from mambar.errors import InputError
from mambar.hub.config_file import json_bytes
from mambar.messages import did_you_mean
from mambar.paper.ablations import ABLATIONS
from mambar.paper.claim import Budget, Provenance, Result
from mambar.paper.context import Context
from mambar.paper.figures import FIGURES, Figure
from mambar.paper.plot import draw_results
from mambar.paper.render import provenance, render
from mambar.paper.sweep import Cell, finished_results, train_cells
from mambar.paper.time_budget import with_deadline
from mambar.user_module import import_file, is_python_file

NAMES = (
    "table_imagenet",
    "table_ade20k",
    "table_register_count",
    "table_register_design",
    "table_costs",
    *FIGURES,
    "table_artifacts",
    "table_secondary",
    *ABLATIONS,
)
# A module with TITLE, CLAIMS, and measure or cells and results; or a `Figure` or `Ablation`, which have these names.
Table = Any

# Runs finish in several threads; only one writes at a time.
_WRITING = threading.Lock()


def names() -> list[str]:
    """The names of all tables and figures."""
    return list(NAMES)


def module(name: str) -> Table:
    """The module of a table, or a figure, by name or by the path of a Python file; `InputError` for an unknown name."""
    if is_python_file(name):
        table = import_file(name)
        needed = ["TITLE", "CLAIMS", *(["cells"] if "results" in table.__dict__ else ["measure"])]
        missing = [part for part in needed if part not in table.__dict__]
        if missing:
            raise InputError(
                f"{name} has no {', '.join(missing)}; a table defines TITLE, CLAIMS, and measure or cells and results."
            )
        return table
    if name not in NAMES:
        hint = did_you_mean(name, NAMES, otherwise="`mambar reproduce --list` lists them.")
        raise InputError(f"there is no table or figure {name!r}; {hint}")
    return FIGURES.get(name) or ABLATIONS.get(name) or importlib.import_module(f"mambar.paper.{name}")


class Options(TypedDict, total=False):
    """Keyword arguments of `reproduce` and `reproduce_together`, described at the fields of `Context`."""

    budget: Budget
    data: str | Path | None
    recipe: str | None
    out: str | Path
    device: str
    fields: Sequence[str]
    seeds: Sequence[int]
    other_seeds: int | None
    runs: Sequence[str | Path]
    more: bool
    num_workers: int
    jobs: int
    minutes: float | None
    fit: bool


def reproduce(name: str, **options: Unpack[Options]) -> list[Result]:
    """Measures the cells of one table or figure; see `reproduce_together`."""
    return reproduce_together((name,), **options)[name]


@accept_old_names(LOADER_ARGUMENTS)
def reproduce_together(names: Sequence[str], **options: Unpack[Options]) -> dict[str, list[Result]]:
    """Measures the cells of tables and figures and returns the results by name.

    Runs that several tables need are trained once; finished runs are read. Writes results.json and the table as
    Markdown, HTML and CSV into `out`/BUDGET/NAME, updated after each run. Raises `InputError` if data are missing.
    """
    chosen = {name: module(name) for name in names}
    context = Context(name=",".join(chosen), **options)
    trained = {part: table for part, table in chosen.items() if table.__dict__.get("cells")}
    if trained:
        context = with_deadline(lambda where: _all_cells(trained, where), context)
        train_cells(_all_cells(trained, context), context, finished=lambda: _write_tables(chosen, context))
    found = {}
    for part, table in chosen.items():
        here = replace(context, name=part)
        measure = table.__dict__.get("measure")
        found[part] = measure(here) if measure else table.results(here, train_cells(table.cells(here), here))
        write(found[part], table, _directory(part, context))
    return found


def _directory(name: str, context: Context) -> Path:
    return context.directory / (Path(name).stem if is_python_file(name) else name)


def _all_cells(tables: Mapping[str, Table], context: Context) -> list[Cell]:
    """The cells of all tables, each with the table's name in its row."""
    return [
        replace(cell, row=f"{Path(name).stem}: {cell.row}")
        for name, table in tables.items()
        for cell in table.cells(context)
    ]


def _write_tables(tables: Mapping[str, Table], context: Context) -> None:
    """Writes the tables that can be made of the finished runs."""
    with _WRITING:
        for name, table in tables.items():
            if table.__dict__.get("results"):
                here = replace(context, name=name)
                results = table.results(here, finished_results(table.cells(here), here))
                write(results, table, _directory(name, context))


def write(results: Sequence[Result], table: Table, directory: Path) -> None:
    """Writes results.json, the table in three formats with its provenance, and table.png with every run."""
    content = {"format_version": 1, "title": table.TITLE, "results": [asdict(result) for result in results]}
    markdown = f"# {table.TITLE}\n\n{render(table.CLAIMS, results)}\n{provenance(results)}"
    files = {
        "results.json": json_bytes(content),
        "table.md": markdown.encode(),
        "table.html": render(table.CLAIMS, results, format="html").encode(),
        "table.csv": render(table.CLAIMS, results, format="csv").encode(),
    }
    # Figures draw themselves.
    drawn = None if isinstance(table, Figure) else draw_results(results)
    if drawn is not None:
        files["table.png"] = png(drawn)
    write_files(directory, files)


def read(directory: Path) -> list[Result]:
    """The results that `write` stored."""
    content = json.loads((directory / "results.json").read_text("utf-8"))
    return [
        Result(
            **{
                **fields,
                "values": tuple(fields["values"]),
                "provenance": Provenance(**{**fields["provenance"], "seeds": tuple(fields["provenance"]["seeds"])}),
            }
        )
        for fields in content["results"]
    ]
