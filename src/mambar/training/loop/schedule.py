"""The learning rate of a step: a pure function, so that a resumed run needs no schedule state."""

import math
from dataclasses import dataclass

from mambar.training.recipe import Stage


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up from `start` to `peak`, then cosine, linear or constant down to `minimum` at the last step.

    As in the official code (timm's scheduler without prefix) the decay counts steps from the start of the stage, not
    from the end of the warm-up. It changes the rate at every step, the official code at every epoch.
    """

    peak: float
    start: float
    minimum: float
    warmup_steps: int
    steps: int
    shape: str

    @classmethod
    def of(cls, stage: Stage, *, steps: int, steps_per_epoch: int) -> "LearningRate":
        """The schedule of a stage of `steps` updates."""
        warmup = round(stage.warmup_epochs * steps_per_epoch) if stage.warmup_steps is None else stage.warmup_steps
        return cls(
            peak=stage.peak_lr,
            start=stage.warmup_lr,
            minimum=stage.min_lr,
            warmup_steps=min(warmup, steps),
            steps=steps,
            shape=stage.schedule,
        )

    def at(self, step: int) -> float:
        """The rate of update number `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * step / self.warmup_steps
        if self.shape == "constant":
            return self.peak
        share = min(step / max(self.steps, 1), 1.0)
        if self.shape == "linear":
            return self.peak + (self.minimum - self.peak) * share
        return self.minimum + (self.peak - self.minimum) * 0.5 * (1 + math.cos(math.pi * share))
