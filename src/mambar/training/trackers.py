"""Experiment trackers: TensorBoard, Weights & Biases and MLflow behind one small interface.

They receive the numbers of metrics.jsonl and the recipe, and nothing else: no environment, no code, no files.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mambar.errors import InputError
from mambar.messages import needs_package
from mambar.training.recipe import Recipe


class TensorBoard:
    """Event files in the run directory's `tensorboard` folder."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        tensorboard = _imported("torch.utils.tensorboard", "tensorboard", extra="track")
        self.writer = tensorboard.SummaryWriter(str(out / "tensorboard"))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb with the run directory's name as id; a resumed run continues it."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.run = _imported("wandb", "wandb").init(
            project="mambar", id=out.name, resume="allow", dir=str(out), config=recipe.to_flat_dict(), save_code=False
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


class MlFlow:
    """A run of MLflow at the tracking server that MLflow is configured for."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.mlflow = _imported("mlflow", "mlflow")
        self.mlflow.start_run(run_name=out.name)
        self.mlflow.log_params({name: str(value)[:250] for name, value in recipe.to_flat_dict().items()})

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        self.mlflow.end_run()


Tracker = TensorBoard | WeightsAndBiases | MlFlow
TRACKERS: Final = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MlFlow}


def make_trackers(recipe: Recipe, out: Path) -> list[Tracker]:
    """The trackers of the recipe."""
    return [TRACKERS[name](recipe, out) for name in recipe.trackers]


def _imported(module: str, name: str, *, extra: str | None = None) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(needs_package(f"trackers={name}", name, extra=extra)) from None
