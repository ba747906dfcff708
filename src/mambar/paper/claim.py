"""A cell of the paper, and a cell of ours: what each must carry to stand in a table."""

import math
from dataclasses import dataclass
from typing import Literal

from mambar.errors import InputError

# smoke: a CPU, minutes, tiny networks: proves the path. small: one GPU, comparable among its own rows only.
# full: the published data and recipe, the only budget that is compared with the paper.
Budget = Literal["smoke", "small", "full"]
BUDGETS: tuple[Budget, ...] = ("smoke", "small", "full")

# How we know a published value: read in the source, derived by arithmetic from what is printed, read off a
# figure by eye, or recalled and to be checked.
Known = Literal["read", "derived", "by eye", "recalled"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published cell, typed once. `version` says which edition of the paper (v1, v2) or which other source."""

    row: str
    column: str
    value: float
    version: str
    source: str
    known: Known = "read"

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise InputError(f"claim {self.row} / {self.column}: {self.value} is no published number.")
        if not self.version or not self.source:
            raise InputError(f"claim {self.row} / {self.column} needs a version and a source.")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a number of ours comes from; without any of it the number does not stand in a table."""

    command: str
    commit: str
    machine: str
    date: str
    data: str
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("command", "commit", "machine", "date", "data"):
            if not getattr(self, name).strip():
                raise InputError(f"a result without {name} is not a measurement; give it.")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured cell: the mean over seeds, the half-width of its 95 % interval where there are several.

    `values` are the single runs, one a seed, in the order of `provenance.seeds`.
    """

    row: str
    column: str
    budget: Budget
    values: tuple[float, ...]
    provenance: Provenance
    note: str = ""

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise InputError(f"budget={self.budget!r} is not known; choose one of {', '.join(BUDGETS)}.")
        if not self.values or not all(isinstance(v, float) and math.isfinite(v) for v in self.values):
            raise InputError(f"{self.row} / {self.column}: {self.values} are no measured numbers; leave the cell out.")
        if self.provenance.seeds and len(self.provenance.seeds) != len(self.values):
            raise InputError(
                f"{self.row} / {self.column}: {len(self.values)} values for {len(self.provenance.seeds)} seeds."
            )

    @property
    def mean(self) -> float:
        """The mean over the runs."""
        return math.fsum(self.values) / len(self.values)
