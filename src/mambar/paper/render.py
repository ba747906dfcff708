"""Renders published and measured cells as a table: paper, ours, difference."""

import csv
import io
from collections.abc import Sequence
from typing import Literal

from mambar.analysis.draw import html
from mambar.errors import InputError
from mambar.paper.claim import BUDGETS, Budget, Claim, Result
from mambar.paper.statistics import half_width

Format = Literal["markdown", "html", "csv"]
NOT_RUN = "not run"
_EMPTY = "–"


def render(claims: Sequence[Claim], results: Sequence[Result], *, format: Format = "markdown") -> str:
    """One table with a column per budget; only full results are compared with the paper.

    Cells without a result read "not run". Raises `InputError` if two results are for one cell.
    """
    header, rows = table_cells(claims, results)
    if format == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_safe(row) for row in [header, *rows]])
        return text.getvalue()
    if format == "html":
        return html.table(header, rows) + "\n"
    if format != "markdown":
        raise InputError(f"format={format!r} is unknown; choose markdown, html or csv.")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def provenance(results: Sequence[Result]) -> str:
    """Command, commit, machine, seeds and data of every group of results, as a Markdown list."""
    seen = dict.fromkeys((result.budget, result.provenance, result.note) for result in results)
    return "".join(
        f"* {budget}: `{where.command}`, commit {where.commit}, {where.date}, {where.machine}; data {where.data}; "
        f"seeds {', '.join(map(str, where.seeds)) or 'none'}{'; ' + note if note else ''}\n"
        for budget, where, note in seen
    )


def table_cells(claims: Sequence[Claim], results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table that `render` writes."""
    cells: dict[tuple[str, str, Budget], Result] = {}
    for result in results:
        place = (result.row, result.column, result.budget)
        if place in cells:
            raise InputError(f"two results for {result.row} / {result.column} at budget {result.budget}.")
        cells[place] = result
    shown: list[Budget] = [b for b in BUDGETS if b == "full" or any(place[2] == b for place in cells)]
    versions = list(dict.fromkeys(claim.version for claim in claims))
    header = ["", "", *(f"paper ({version})" for version in versions)]
    for budget in reversed(shown):
        header += ["ours", "difference"] if budget == "full" else [f"ours, {budget} (not comparable)"]
    rows = []
    for row, column in dict.fromkeys([(c.row, c.column) for c in claims] + [(r.row, r.column) for r in results]):
        published = {c.version: c for c in claims if (c.row, c.column) == (row, column)}
        line = [
            " ".join(row.split()),
            " ".join(column.split()),
            *(_claimed(published.get(version)) for version in versions),
        ]
        for budget in reversed(shown):
            result = cells.get((row, column, budget))
            line.append(_measured(result))
            if budget == "full":
                line.append(_difference(result, list(published.values())))
        rows.append(line)
    return header, rows


def _claimed(claim: Claim | None) -> str:
    if claim is None:
        return _EMPTY
    return f"{_number(claim.value)}{'' if claim.known == 'read' else f' ({claim.known})'}"


def _measured(result: Result | None) -> str:
    if result is None:
        return NOT_RUN
    width = half_width(result.values)
    return _number(result.mean) + (f" ± {_number(width)} ({len(result.values)} seeds)" if width is not None else "")


def _difference(result: Result | None, published: Sequence[Claim]) -> str:
    if result is None or not published:
        return _EMPTY
    return f"{result.mean - published[-1].value:+.4g} ({published[-1].version})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _safe(row: Sequence[str]) -> list[str]:
    """Cells escaped so that a spreadsheet does not read a formula; signs of numbers stay."""
    started = [("=", "@", "+", "-") if place < 2 else ("=", "@") for place in range(len(row))]
    return ["'" + cell if cell[:1] in starts else cell for cell, starts in zip(row, started, strict=True)]
