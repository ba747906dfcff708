"""Results as a Markdown table; missing cells are marked *not run*."""

from collections.abc import Sequence
from dataclasses import dataclass, field

NOT_RUN = "*not run*"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: its name, and its cells in the order of the columns. None and missing cells are *not run*."""

    name: str
    cells: Sequence[str | float | None] = field(default_factory=tuple)


def markdown(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A Markdown table; numbers have four significant digits."""
    lines = ["| " + " | ".join(["", *columns]) + " |", "|" + "---|" * (len(columns) + 1)]
    for row in rows:
        cells = [*row.cells, *[None] * (len(columns) - len(row.cells))]
        lines.append("| " + " | ".join([_escaped(row.name), *map(_cell, cells)]) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: str | float | None) -> str:
    if value is None:
        return NOT_RUN
    if isinstance(value, str):
        return _escaped(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
