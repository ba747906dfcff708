"""Where a run is, and what it is run with: what a trainer is handed beside the recipe."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mambar.training.checkpoint.store import CheckpointStore
from mambar.training.distributed.process_group import ProcessGroup
from mambar.training.loop.precision import Numerics
from mambar.training.loop.signals import Wishes
from mambar.training.metrics_log import MetricsLog, Progress


@dataclass(kw_only=True)
class Position:
    """Where a run is: all of its state but the tensors. Steps count within the stage; `offset` is before it."""

    stage: int = 0
    offset: int = 0
    step: int = 0
    # The step of the last finished evaluation, what it measured, and the best value so far.
    evaluated: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None
    # Steps without an update, in all and just now; how often the run rolled back, and its learning-rate factor.
    skipped: int = 0
    in_row: int = 0
    course: int = 0
    lr_factor: float = 1.0

    @property
    def total(self) -> int:
        """Steps since the start of the run."""
        return self.offset + self.step

    @property
    def total_evaluated(self) -> int:
        """The last step of the run whose evaluation is done (the end of the stage before, at a stage's start)."""
        return self.offset + max(self.evaluated, 0)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them; a metric that is no number becomes null."""
        plain = asdict(self)
        metrics = self.metrics.items()
        plain["metrics"] = {name: value if math.isfinite(value) else None for name, value in metrics}
        return plain

    def update(self, plain: Mapping[str, Any]) -> None:
        """Takes over what `to_dict` gave."""
        for name in asdict(self):
            setattr(self, name, plain[name])
        self.metrics = {name: math.nan if value is None else value for name, value in plain["metrics"].items()}


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a stage is run with and does not decide: processes, files, voice."""

    processes: ProcessGroup
    numerics: Numerics
    store: CheckpointStore
    metrics: MetricsLog
    progress: Progress
    wishes: Wishes
    workers: int
    # Facts that a resumed run must find unchanged; stored with every checkpoint.
    facts: dict[str, Any]
