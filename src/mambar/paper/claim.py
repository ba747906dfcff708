"""A published cell, a measured cell, and what each must record."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mambar.errors import InputError

# smoke: tiny networks on a CPU, minutes; a test of the code path. small: one GPU, comparable only between its own rows.
# full: the published data and recipe, the only budget that is compared with the paper.
Budget = Literal["smoke", "small", "full"]
BUDGETS: tuple[Budget, ...] = ("smoke", "small", "full")

# How a published value was obtained: read in the source, derived by arithmetic, read off a figure, or recalled and
# unverified.
Known = Literal["read", "derived", "by eye", "recalled"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published cell. `version` is the edition of the paper (v1, v2) or another source."""

    row: str
    column: str
    value: float
    version: str
    source: str
    known: Known = "read"

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise InputError(f"claim {self.row} / {self.column}: {self.value} is not a published number.")
        if not self.version or not self.source:
            raise InputError(f"claim {self.row} / {self.column} needs a version and a source.")


def claims(column: str, values: Mapping[str, float], *, version: str, source: str) -> tuple[Claim, ...]:
    """Published cells of one column and source: row → value."""
    return tuple(
        Claim(row=row, column=column, value=value, version=version, source=source) for row, value in values.items()
    )


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a result was measured. Every field is required."""

    command: str
    commit: str
    machine: str
    date: str
    data: str
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("command", "commit", "machine", "date", "data"):
            if not getattr(self, name).strip():
                raise InputError(f"a result without {name} is not allowed; give it.")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured cell: one value per run, in the order of `provenance.seeds`."""

    row: str
    column: str
    budget: Budget
    values: tuple[float, ...]
    provenance: Provenance
    note: str = ""

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise InputError(f"budget={self.budget!r} is unknown; choose one of {', '.join(BUDGETS)}.")
        if not self.values or not all(isinstance(v, float) and math.isfinite(v) for v in self.values):
            raise InputError(f"{self.row} / {self.column}: {self.values} are not measured numbers; omit the cell.")
        if self.provenance.seeds and len(self.provenance.seeds) != len(self.values):
            raise InputError(
                f"{self.row} / {self.column}: {len(self.values)} values for {len(self.provenance.seeds)} seeds."
            )

    @property
    def mean(self) -> float:
        """The mean over the runs."""
        return math.fsum(self.values) / len(self.values)
