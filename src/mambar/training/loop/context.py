"""Training progress, which checkpoints store, and the runtime services that the stages of a run share."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from mambar.training.checkpoint.store import CheckpointStore
from mambar.training.distributed.process_group import ProcessGroup
from mambar.training.loop.precision import PrecisionPolicy
from mambar.training.loop.signals import StopSignals
from mambar.training.metrics_log import MetricsLog, ProgressDisplay

# Field names in checkpoints of version 0.1 → present names.
_NAMES_IN_VERSION_0_1: Final = {
    "evaluated": "evaluated_step",
    "skipped": "num_skipped",
    "in_row": "consecutive_skips",
    "course": "num_rollbacks",
}


@dataclass(kw_only=True)
class TrainingProgress:
    """The state of a run apart from its tensors. Steps are counted within the stage.

    Attributes:
        stage: Index of the current stage.
        offset: Steps of all earlier stages.
        step: Finished steps of the current stage.
        evaluated_step: Step of the last finished evaluation, -1 before the first one.
        metrics: Metrics of that evaluation.
        best: Best value of the task's metric so far.
        best_step: Step of the run at which `best` was measured.
        num_skipped: Steps without an update because loss or gradient was not finite.
        consecutive_skips: Such steps since the last update.
        num_rollbacks: How often the run has returned to an earlier checkpoint.
        lr_factor: Factor on the learning rate; halved at each rollback.
    """

    stage: int = 0
    offset: int = 0
    step: int = 0
    evaluated_step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None
    num_skipped: int = 0
    consecutive_skips: int = 0
    num_rollbacks: int = 0
    lr_factor: float = 1.0

    @property
    def total_steps(self) -> int:
        """Steps since the start of the run."""
        return self.offset + self.step

    @property
    def total_evaluated_steps(self) -> int:
        """The last evaluated step of the run; at the start of a stage, the last step of the stage before."""
        return self.offset + max(self.evaluated_step, 0)

    def to_dict(self) -> dict[str, Any]:
        """All fields for JSON; a metric that is not finite becomes null."""
        plain = asdict(self)
        metrics = self.metrics.items()
        plain["metrics"] = {name: value if math.isfinite(value) else None for name, value in metrics}
        return plain

    def update(self, scalars: Mapping[str, Any]) -> None:
        """Restores all fields from the scalars of a checkpoint, also from one of version 0.1."""
        plain = scalars["progress"] if "progress" in scalars else scalars["position"]
        stored = {_NAMES_IN_VERSION_0_1.get(name, name): value for name, value in plain.items()}
        for name in asdict(self):
            setattr(self, name, stored[name])
        self.metrics = {name: math.nan if value is None else value for name, value in stored["metrics"].items()}


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Runtime services shared by all stages.

    Attributes:
        process_group: The processes of the run and this one's device.
        precision: Dtype of the parameters and autocast.
        store: The run's checkpoints.
        metrics: The metrics log.
        display: Progress on the console.
        stop_signals: Stop signals received so far.
        num_workers: Data loader processes.
        facts: What a resumed run must find unchanged; stored with every checkpoint.
    """

    process_group: ProcessGroup
    precision: PrecisionPolicy
    store: CheckpointStore
    metrics: MetricsLog
    display: ProgressDisplay
    stop_signals: StopSignals
    num_workers: int
    facts: dict[str, Any]
