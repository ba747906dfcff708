"""The settings of a reproduction: budget, data, device, seeds, directories."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from mambar.errors import InputError
from mambar.paper.claim import BUDGETS, Budget, Provenance, Result
from mambar.version import __version__


@dataclass(frozen=True, kw_only=True)
class Context:
    """The settings of a reproduction."""

    # Tables or figures, comma-separated.
    name: str
    # smoke (a CPU, minutes), small (one GPU, rows are comparable) or full (the paper's).
    budget: Budget = "smoke"
    # Results are written into `out`/BUDGET/NAME.
    out: str | Path = "runs/reproduce"
    data: str | Path | None = None
    # Recipe that replaces the one of `small`: a name of `mambar recipe --list`, or a Python file.
    recipe: str | None = None
    device: str = "cpu"
    # `field=value` texts that change every recipe (epochs=20).
    fields: Sequence[str] = ()
    # Seeds of the compared rows.
    seeds: Sequence[int] = (0,)
    # Number of seeds of the other rows; None: all.
    other_seeds: int | None = None
    # Run folders of Vim and Mamba-R, from which figures are drawn without training.
    runs: Sequence[str | Path] = ()
    # Also measure rows that the paper does not have.
    more: bool = False
    # Data loader processes of each run.
    num_workers: int = 0
    # Runs in parallel, each a process, spread over the GPUs.
    jobs: int = 1
    # Time for all training. A short trial measures the speed; runs that do not fit are refused.
    minutes: float | None = None
    # With `minutes`: train as many epochs as fit.
    fit: bool = False
    # When runs are stopped and saved, as a value of `time.monotonic`.
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise InputError(f"budget={self.budget!r} is unknown; choose one of {', '.join(BUDGETS)}.")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise InputError(f"seeds={list(self.seeds)} must be at least one integer, without repetition.")
        if self.runs and len(self.runs) != 2:
            raise InputError(f"runs={','.join(map(str, self.runs))} must be two run folders: Vim, then Mamba-R.")
        if self.recipe is not None and self.budget != "small":
            raise InputError(
                f"The recipe {self.recipe} has no effect at the budget {self.budget}; choose the budget small."
            )

    @property
    def directory(self) -> Path:
        """The directory of all runs and results of the budget."""
        return Path(self.out) / self.budget

    def provenance(self, *, data: str, seeds: tuple[int, ...] = ()) -> Provenance:
        """The provenance of a result of this reproduction."""
        from mambar.bench.machine import describe

        chosen = [] if self.recipe is None else [f"--recipe {self.recipe}"]
        drawn = [f"--runs {','.join(map(str, self.runs))}"] if self.runs else []
        words = [f"mambar reproduce {self.name} --budget {self.budget}", *chosen, *drawn, *self.fields]
        return Provenance(
            command=" ".join(words),
            commit=commit(),
            machine=describe(self.device),
            date=date.today().isoformat(),
            data=data,
            seeds=seeds,
        )

    def result(
        self, row: str, column: str, values: Mapping[int, float] | float, *, data: str, note: str = ""
    ) -> Result:
        """A measured cell: one value per seed, or one that depends on no seed."""
        by_seed = values if isinstance(values, Mapping) else {}
        return Result(
            row=row,
            column=column,
            budget=self.budget,
            values=tuple(by_seed.values()) if isinstance(values, Mapping) else (values,),
            provenance=self.provenance(data=data, seeds=tuple(by_seed)),
            note=note,
        )

    def results(
        self, column: str, table: Mapping[str, Mapping[int, float]], *, data: str, note: str = ""
    ) -> list[Result]:
        """The measured cells of a column: row → seed → value."""
        return [self.result(row, column, by_seed, data=data, note=note) for row, by_seed in table.items()]


def commit() -> str:
    """The commit of the source tree, marked if it has changes; without git the version."""
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
