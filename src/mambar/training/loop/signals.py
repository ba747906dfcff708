"""Graceful shutdown: signal handlers set flags, which the training loop checks between two steps."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from mambar.errors import MambarError
from mambar.training.distributed.environment import local_rank, max_restarts, world_size

# By name, because not every system has every signal. If several were received, the first one here counts.
SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGUSR1")
_EXIT_CODES: Final = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143}


class Stopped(MambarError):
    """The run was stopped by a signal and its state is saved.

    Attributes:
        exit_code: 130 for SIGINT, 143 for the others.
        step: Steps since the start of the run.
    """

    def __init__(self, name: str, *, step: int, checkpoint: Path, out: Path) -> None:
        super().__init__(
            f"Stopped by {name} after step {step}; saved to {checkpoint}. Go on with: mambar train --resume {out}"
        )
        self.exit_code = _EXIT_CODES[name]
        self.step = step


class StopSignals:
    """The stop signals that this process has received; a repeated signal does not interrupt a save."""

    def __init__(self) -> None:
        self.received: set[str] = set()

    def flags(self) -> list[float]:
        """1 for each received signal, 0 for the others; the ranks agree by an all-reduce of the flags."""
        return [float(name in self.received) for name in SIGNALS]

    @staticmethod
    def first_of(flags: list[float]) -> str | None:
        """The name of the first signal whose summed flag is not 0, None if no rank received one."""
        return next((name for name, flag in zip(SIGNALS, flags, strict=True) if flag > 0), None)


@contextmanager
def catch_stop_signals() -> Iterator[StopSignals]:
    """Handles the stop signals inside the block; no effect outside the main thread."""
    signals = StopSignals()
    before: dict[int, Any] = {}

    def record(number: int, frame: FrameType | None) -> None:
        signals.received.add(signal.Signals(number).name)

    if threading.current_thread() is threading.main_thread():
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None:
                before[number] = signal.signal(number, record)
    try:
        yield signals
    except Stopped as stopped:
        if world_size() > 1 or max_restarts():
            # torchrun sends SIGTERM when the first rank has ended; the others still report the stop and exit.
            before = dict.fromkeys(before, signal.SIG_IGN)
        if max_restarts() and local_rank() == 0:
            # torchrun would restart the ranks; its agent, which is the parent process, stops too.
            os.kill(os.getppid(), signal.SIGINT if stopped.exit_code == _EXIT_CODES["SIGINT"] else signal.SIGTERM)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
