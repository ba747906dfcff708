"""The result of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mambar.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a finished run.

    Attributes:
        metrics: Metrics of the final weights on the validation images.
        checkpoint: Path of model.safetensors.
        recipe: The recipe of the run.
        already_finished: True if the run had been finished before and nothing was computed.
        step: Step of the run that the final weights and `metrics` are from; None in a result of version 0.1.
        last_step: Steps of the run.
        num_evaluations: Evaluations among which the best was chosen; 1 if the final weights are those of the last step.
        num_val_images: Validation images.
        test_metrics: Metrics on the test images, which are used once, after the choice; None without a test split.
        num_test_images: Test images.
    """

    metrics: Mapping[str, float]
    checkpoint: Path
    recipe: Recipe
    already_finished: bool = False
    step: int | None = None
    last_step: int | None = None
    num_evaluations: int | None = None
    num_val_images: int | None = None
    test_metrics: Mapping[str, float] | None = None
    num_test_images: int | None = None

    @property
    def directory(self) -> Path:
        """The run directory, an argument for `mambar.load`."""
        return self.checkpoint.parent

    @property
    def origin(self) -> str:
        """What `metrics` are from, in words; "" if it is unknown."""
        if self.step is None:
            return ""
        images = f"{self.num_val_images:,} validation images"
        if self.recipe.final_weights == "best" and self.num_evaluations != 1:
            return f"step {self.step} of {self.last_step}, the best of {self.num_evaluations} evaluations on {images}"
        averaged = "EMA of the weights at " if self.recipe.final_weights == "ema" else ""
        return f"{averaged}step {self.step}, the last one, on {images}"

    def describe(self) -> str:
        """What the metrics are from, and the first test metric, in sentences; "" if both are unknown."""
        text = f"Validation metrics: {self.origin}." if self.origin else ""
        for name, value in list((self.test_metrics or {}).items())[:1]:
            text += f" Independent test: {name} {value:.4f} on {self.num_test_images:,} images."
        return text
