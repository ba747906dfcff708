"""The learning rate of a step: a pure function, so that a resumed run needs no schedule state."""

import math
from dataclasses import dataclass

from mambar.training.recipe import Stage


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """The rate of a stage of `steps` updates: linear warm-up, then cosine, linear or constant to the last step.

    As in the official code (timm's scheduler without prefix) the decay counts steps from the start of the stage, not
    from the end of the warm-up. It changes the rate at every step, the official code at every epoch.
    """

    stage: Stage
    steps: int
    steps_per_epoch: int

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up, at most all."""
        stage = self.stage
        in_epochs = round(stage.warmup_epochs * self.steps_per_epoch)
        return min(in_epochs if stage.warmup_steps is None else stage.warmup_steps, self.steps)

    def at(self, step: int) -> float:
        """The rate of update number `step`, counted from 0."""
        peak, minimum, start = self.stage.peak_lr, self.stage.min_lr, self.stage.warmup_lr
        if step < self.warmup_steps:
            return start + (peak - start) * step / self.warmup_steps
        if self.stage.schedule == "constant":
            return peak
        share = min(step / max(self.steps, 1), 1.0)
        if self.stage.schedule == "linear":
            return peak + (minimum - peak) * share
        return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * share))
