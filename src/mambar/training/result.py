"""The result of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mambar.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a finished run.

    Attributes:
        metrics: Metrics of the final weights.
        checkpoint: Path of model.safetensors.
        recipe: The recipe of the run.
        already_finished: True if the run had been finished before and nothing was computed.
    """

    metrics: Mapping[str, float]
    checkpoint: Path
    recipe: Recipe
    already_finished: bool = False

    @property
    def directory(self) -> Path:
        """The run directory, an argument for `mambar.load`."""
        return self.checkpoint.parent
