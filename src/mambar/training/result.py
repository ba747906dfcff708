"""What a finished run hands over."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mambar.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The numbers of the delivered weights, where they are, and the recipe as run."""

    metrics: Mapping[str, float]
    checkpoint: Path
    recipe: Recipe
    # The run had been finished before; nothing was computed now.
    already_finished: bool = False

    @property
    def directory(self) -> Path:
        """The run directory, as `mambar.load` takes it."""
        return self.checkpoint.parent
