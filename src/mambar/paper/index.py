"""The tables and figures by name, and the one function that reproduces any of them."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from mambar.errors import InputError
from mambar.hub.files import json_bytes, write_atomically
from mambar.paper.claim import BUDGETS, Budget, Provenance, Result
from mambar.paper.context import Context
from mambar.paper.render import provenance, render

NAMES = (
    "table_imagenet",
    "table_register_count",
    "table_register_design",
    "table_costs",
    "figure_norms",
    "figure_probes",
    "figure_feature_maps",
    "figure_register_maps",
)


def names() -> list[str]:
    """The names of all tables and figures."""
    return list(NAMES)


def module(name: str) -> ModuleType:
    """The file of a table or figure; `InputError` with the nearest name for an unknown one."""
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(NAMES)}."
        raise InputError(f"the paper has no {name!r} here; {hint}")
    return importlib.import_module(f"mambar.paper.{name}")


def reproduce(
    name: str,
    *,
    budget: Budget = "smoke",
    data: str | Path | None = None,
    out: str | Path = "runs/reproduce",
    device: str = "cpu",
    seeds: Sequence[int] = (0,),
    workers: int = 0,
    jobs: int = 1,
) -> list[Result]:
    """Measures the cells of a table or figure that the budget pays for; finished ones are read, not run again.

    Writes results.json and the table as Markdown, HTML and CSV into `out`/NAME. budget: "smoke" (a CPU, minutes,
    proves the path), "small" (one GPU; comparable among its own rows), "full" (the paper's data and recipe).
    jobs: cells side by side, each a process. Raises `InputError` for data that are missing.
    """
    chosen = module(name)
    if budget not in BUDGETS:
        raise InputError(f"budget={budget!r} is not known; choose one of {', '.join(BUDGETS)}.")
    if len(set(seeds)) != len(seeds) or not seeds:
        raise InputError(f"seeds={list(seeds)} must be different whole numbers, at least one.")
    context = Context(
        name=name,
        budget=budget,
        out=Path(out) / budget,
        data=None if data is None else str(data),
        device=device,
        seeds=tuple(seeds),
        workers=workers,
        jobs=jobs,
    )
    results: list[Result] = chosen.measure(context)
    write(results, chosen, context.out / name)
    return results


def write(results: Sequence[Result], table: ModuleType, directory: Path) -> None:
    """results.json, and the table in three formats, each with where its numbers come from."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"format_version": 1, "title": table.TITLE, "results": [asdict(result) for result in results]}
    write_atomically(directory / "results.json", json_bytes(content))
    markdown = f"# {table.TITLE}\n\n{render(table.CLAIMS, results)}\n{provenance(results)}"
    write_atomically(directory / "table.md", markdown.encode())
    write_atomically(directory / "table.html", render(table.CLAIMS, results, format="html").encode())
    write_atomically(directory / "table.csv", render(table.CLAIMS, results, format="csv").encode())


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
