"""Images per second of the training steps, and a line in the log where the data loader limits them."""

import logging
import os
import time
from typing import Final

from mambar.training.loop.update import StepResult

_LOG = logging.getLogger("mambar.training")
# Steps that are compared; the first ones of a stage also compile kernels and fill the loader's queue.
_WINDOW: Final = 20
# Share of the time waiting for images above which the loader is named as the limit.
_LIMIT: Final = 0.1


class Throughput:
    """Times the steps of a stage from one `StepResult` to the next."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._last = time.perf_counter()
        self._num_steps = 0
        self._seconds = self._loading = self._passes = 0.0
        self._has_warned = False

    def restart(self) -> None:
        """Starts the clock again, after an evaluation or a rollback."""
        self._last = time.perf_counter()
        self._num_steps = 0

    def step(self, result: StepResult, num_images: int) -> float:
        """The images per second of the step, over all processes; warns once per stage."""
        now = time.perf_counter()
        seconds, self._last = max(now - self._last, 1e-9), now
        if self._num_steps % _WINDOW == 0:
            self._seconds = self._loading = self._passes = 0.0
        self._num_steps += 1
        self._seconds += seconds
        self._loading += result.loading
        # Without a GPU the forward and backward passes take the rest of the step.
        self._passes += seconds - result.loading if result.passes is None else result.passes
        is_limited = self._loading > _LIMIT * self._seconds and self._passes < (1 - _LIMIT) * self._seconds
        # The first window contains the compilation of kernels.
        if is_limited and self._num_steps % _WINDOW == 0 and self._num_steps > _WINDOW and not self._has_warned:
            self._has_warned = True
            images = num_images * _WINDOW
            _LOG.warning(
                "The data loader limits training: it gives %.0f images/s, the step takes %.0f images/s. "
                "num_workers=%d of %d CPUs; use more, or smaller stored images.",
                *(images / self._seconds, images / max(self._passes, 1e-9), self._num_workers, os.cpu_count() or 1),
            )
        return num_images / seconds
