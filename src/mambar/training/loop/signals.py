"""Ctrl-C, SIGTERM and SIGUSR1 as a wish that the training loop grants between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from mambar.errors import MambarError

# Wishes in the order of their exit codes; names, because not every system has every signal.
SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGUSR1")
_EXIT_CODES: Final = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143}


class Stopped(MambarError):
    """The run was asked to stop; its state is saved. The exit code is 130 for Ctrl-C, else 143."""

    def __init__(self, name: str, *, step: int, checkpoint: Path, out: Path) -> None:
        super().__init__(
            f"Stopped by {name} after step {step}; saved to {checkpoint}. Go on with: mambar train --resume {out}"
        )
        self.exit_code = _EXIT_CODES[name]
        # The last step that was made, counted over all stages.
        self.step = step


class StopSignals:
    """Which stop signals this process has received; a second one changes nothing, the save under way goes on."""

    def __init__(self) -> None:
        self.received: set[str] = set()

    def flags(self) -> list[float]:
        """One number a signal, 1 where it was received: what the processes add up to agree."""
        return [float(name in self.received) for name in SIGNALS]

    @staticmethod
    def first_of(flags: list[float]) -> str | None:
        """The signal that summed flags stand for, None if no process received any."""
        return next((name for name, flag in zip(SIGNALS, flags, strict=True) if flag > 0), None)


@contextmanager
def catch_stop_signals() -> Iterator[StopSignals]:
    """Catches the stop signals while the block runs; outside the main thread signals stay as they are."""
    signals = StopSignals()
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        signals.received.add(signal.Signals(number).name)

    if threading.current_thread() is threading.main_thread():
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None:
                before[number] = signal.signal(number, note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
