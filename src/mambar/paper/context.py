"""Where and how the cells of a table are measured: one context for a whole reproduction."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from mambar.paper.claim import Budget, Provenance, Result
from mambar.version import __version__


@dataclass(frozen=True, kw_only=True)
class Context:
    """The reproduction under way: its name and budget, its directory, the data and devices to use.

    fields: `field=value` texts that change every recipe (epochs=20). seeds: of the rows that decide; other_seeds: how
    many of them the other rows get (None: all). more: the rows beyond the paper's too. jobs: runs side by side, as
    separate processes, spread over the GPUs. deadline: when runs are stopped and saved, a reading of `time.monotonic`.
    """

    name: str
    budget: Budget
    out: Path
    data: str | None = None
    device: str = "cpu"
    fields: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    other_seeds: int | None = None
    more: bool = False
    workers: int = 0
    jobs: int = 1
    deadline: float | None = None

    def provenance(self, *, data: str, seeds: tuple[int, ...] = ()) -> Provenance:
        """What a result of this reproduction carries."""
        from mambar.bench.machine import describe

        words = [f"mambar reproduce {self.name} budget={self.budget}", *self.fields]
        return Provenance(
            command=" ".join(words),
            commit=commit(),
            machine=describe(self.device),
            date=date.today().isoformat(),
            data=data,
            seeds=seeds,
        )

    def result(self, row: str, column: str, by_seed: Mapping[int, float], *, data: str, note: str = "") -> Result:
        """A cell of this reproduction: the values of its seeds, in their order."""
        return Result(
            row=row,
            column=column,
            budget=self.budget,
            values=tuple(by_seed.values()),
            provenance=self.provenance(data=data, seeds=tuple(by_seed)),
            note=note,
        )


def commit() -> str:
    """The commit of the source tree this runs from, marked where it has changes; else the version."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short", "HEAD")
        changed = _git(here, "status", "--porcelain", "--", str(here.parent))
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"
    return f"{head} with changes" if changed else head


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    return done.stdout.strip()
