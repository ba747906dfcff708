"""Tables and figures by name, and their reproduction."""

import importlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import TypedDict, Unpack

from mambar.analysis.draw.plots import png
from mambar.deprecated import LOADER_ARGUMENTS, accept_old_names
from mambar.errors import InputError
from mambar.hub.config_file import json_bytes
from mambar.hub.files import write_atomically
from mambar.messages import did_you_mean
from mambar.paper.claim import BUDGETS, Budget, Provenance, Result
from mambar.paper.context import Context
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
    "figure_norms",
    "figure_probes",
    "figure_feature_maps",
    "figure_register_maps",
    "table_artifacts",
)


# Runs finish in several threads; only one writes at a time.
_WRITING = threading.Lock()


def names() -> list[str]:
    """The names of all tables and figures."""
    return list(NAMES)


def module(name: str) -> ModuleType:
    """The module of a table or figure, by name or by the path of a Python file; `InputError` for an unknown name."""
    if is_python_file(name):
        table = import_file(name)
        missing = [part for part in ("TITLE", "CLAIMS", "measure") if part not in table.__dict__]
        if missing:
            raise InputError(f"{name} has no {', '.join(missing)}; a table defines TITLE, CLAIMS and measure.")
        return table
    if name not in NAMES:
        hint = did_you_mean(name, NAMES, otherwise="`mambar reproduce --list` lists them.")
        raise InputError(f"there is no table or figure {name!r}; {hint}")
    return importlib.import_module(f"mambar.paper.{name}")


class Options(TypedDict, total=False):
    """Keyword arguments of `reproduce` and `reproduce_together`."""

    budget: Budget
    data: str | Path | None
    out: str | Path
    device: str
    fields: Sequence[str]
    seeds: Sequence[int]
    other_seeds: int | None
    more: bool
    num_workers: int
    jobs: int
    minutes: float | None
    fit: bool


def reproduce(name: str, **options: Unpack[Options]) -> list[Result]:
    """Measures the cells of one table or figure; see `reproduce_together` for the options."""
    return reproduce_together((name,), **options)[name]


@accept_old_names(LOADER_ARGUMENTS)
def reproduce_together(
    names: Sequence[str],
    *,
    budget: Budget = "smoke",
    data: str | Path | None = None,
    out: str | Path = "runs/reproduce",
    device: str = "cpu",
    fields: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    other_seeds: int | None = None,
    more: bool = False,
    num_workers: int = 0,
    jobs: int = 1,
    minutes: float | None = None,
    fit: bool = False,
) -> dict[str, list[Result]]:
    """Measures the cells of tables and figures and returns the results by name.

    Runs that several tables need are trained once; finished runs are read. Writes results.json and the table as
    Markdown, HTML and CSV into `out`/BUDGET/NAME, updated after each run.

    Args:
        budget: "smoke" (a CPU, minutes), "small" (one GPU, rows are comparable) or "full" (the paper's).
        fields: `field=value` texts for every recipe.
        seeds: Seeds of the compared rows.
        other_seeds: Number of seeds of the other rows; None for all.
        more: Also measure rows that the paper does not have.
        jobs: Number of runs in parallel, each a process.
        minutes: Time for all training. A short trial measures the speed; runs that do not fit are refused.
        fit: With `minutes`: train as many epochs as fit.

    Raises `InputError` if data are missing.
    """
    chosen = {name: module(name) for name in names}
    if budget not in BUDGETS:
        raise InputError(f"budget={budget!r} is unknown; choose one of {', '.join(BUDGETS)}.")
    if len(set(seeds)) != len(seeds) or not seeds:
        raise InputError(f"seeds={list(seeds)} must be at least one integer, without repetition.")
    context = Context(
        name=",".join(chosen),
        budget=budget,
        out=Path(out) / budget,
        data=None if data is None else str(data),
        device=device,
        fields=tuple(fields),
        seeds=tuple(seeds),
        other_seeds=other_seeds,
        more=more,
        num_workers=num_workers,
        jobs=jobs,
    )
    trained = [table for table in chosen.values() if table.__dict__.get("cells")]
    if trained:
        context = with_deadline(minutes, fit=fit, cells=lambda where: _all_cells(trained, where), context=context)
        train_cells(_all_cells(trained, context), context, finished=lambda: _write_tables(chosen, context))
    found = {}
    for part, table in chosen.items():
        found[part] = table.measure(replace(context, name=part))
        write(found[part], table, context.out / _directory_name(part))
    return found


def _directory_name(name: str) -> str:
    return Path(name).stem if is_python_file(name) else name


def _all_cells(tables: Sequence[ModuleType], context: Context) -> list[Cell]:
    """The cells of all tables, each with the table's name in its row."""
    return [
        replace(cell, row=f"{table.__name__.rpartition('.')[2]}: {cell.row}")
        for table in tables
        for cell in table.cells(context)
    ]


def _write_tables(tables: Mapping[str, ModuleType], context: Context) -> None:
    """Writes the tables that can be made of the finished runs."""
    with _WRITING:
        for name, table in tables.items():
            if table.__dict__.get("results"):
                here = replace(context, name=name)
                results = table.results(here, finished_results(table.cells(here), here))
                write(results, table, context.out / _directory_name(name))


def write(results: Sequence[Result], table: ModuleType, directory: Path) -> None:
    """Writes results.json, the table in three formats with its provenance, and table.png with every run."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"format_version": 1, "title": table.TITLE, "results": [asdict(result) for result in results]}
    write_atomically(directory / "results.json", json_bytes(content))
    markdown = f"# {table.TITLE}\n\n{render(table.CLAIMS, results)}\n{provenance(results)}"
    write_atomically(directory / "table.md", markdown.encode())
    write_atomically(directory / "table.html", render(table.CLAIMS, results, format="html").encode())
    write_atomically(directory / "table.csv", render(table.CLAIMS, results, format="csv").encode())
    drawn = draw_results(results)
    if drawn is not None:
        write_atomically(directory / "table.png", png(drawn))


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
