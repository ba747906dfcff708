"""The metrics log of a run (metrics.jsonl), and its progress on the console."""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from mambar import atomic_files
from mambar.errors import CheckpointError
from mambar.training.trackers import Tracker

METRICS_FORMAT: Final = 1
_LOG = logging.getLogger("mambar.training")


class MetricsLog:
    """metrics.jsonl: one JSON object per line. After a resume it has no rows beyond the resumed step."""

    def __init__(self, path: Path, *, trackers: Sequence[Tracker] = ()) -> None:
        self.path = path
        self.trackers = trackers
        self._file: int | None = None

    def open(self, *, step: int, evaluated: int) -> None:
        """Removes rows after `step`, evaluations after `evaluated` and an incomplete last row; opens for appending."""
        kept = [
            row
            for row in read_metrics(self.path)
            if row["step"] <= (evaluated if row["kind"] == "evaluation" else step)
        ]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if self.path.is_symlink() or not self.path.exists() or self.path.read_text("utf-8") != text:
            atomic_files.write_atomically(self.path, text.encode())
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        self._file = os.open(self.path, flags)

    def append(self, kind: str, values: Mapping[str, Any]) -> None:
        """Appends one row; numbers that are not finite are written as null."""
        if self._file is None:
            return
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        data = (json.dumps({"format_version": METRICS_FORMAT, "kind": kind, **plain}) + "\n").encode()
        size = os.fstat(self._file).st_size
        try:
            atomic_files.write_all(self._file, data)
        except OSError as error:
            # Part of the row may have been written; the next row must not continue it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise atomic_files.disk_error(self.path, len(data), error) from error
        numbers = {name: value for name, value in plain.items() if isinstance(value, int | float)}
        for tracker in self.trackers:
            tracker.log(int(values["step"]), {f"{kind}/{name}": float(value) for name, value in numbers.items()})

    def sync(self) -> None:
        """Flushes the rows to disk; called before each checkpoint."""
        if self._file is None:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            raise atomic_files.disk_error(self.path, 0, error) from error

    def close(self) -> None:
        """Closes the file and the trackers."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        for tracker in self.trackers:
            tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl without an incomplete last one; CheckpointError for a newer format."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            version, _ = row["format_version"], (row["kind"], row["step"])
        except (ValueError, KeyError, TypeError):
            if number < len(lines) - 1:
                _LOG.warning("%s: line %d is damaged and ignored.", path, number + 1)
            continue
        if not isinstance(version, int) or version > METRICS_FORMAT:
            raise CheckpointError(
                f"{path} has format_version {version}; this version reads up to {METRICS_FORMAT}: update mambar."
            )
        rows.append(row)
    return rows


class ProgressDisplay:
    """Progress of a stage: a bar on a terminal, elsewhere a log line every few `seconds`; nothing if not `visible`."""

    def __init__(self, *, visible: bool = True, seconds: float = 10.0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.seconds = seconds
        # A service may have no standard error.
        self.has_bar = visible and sys.stderr is not None and sys.stderr.isatty()
        self.has_lines = visible and not self.has_bar
        # If it is disabled, it only estimates speed and remaining time.
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=4,
            speed_estimate_period=60,
            disable=not self.has_bar,
        )

    def start(self, title: str, *, steps: int, done: int) -> None:
        """Begins a stage of `steps` steps, of which `done` are finished."""
        self.title, self.steps, self.last_line = title, steps, time.monotonic()
        self.bar.start()
        self.task = self.bar.add_task(title, total=steps, completed=done, numbers="")

    def step(self, done: int, *, loss: float, accuracy: float | None, images: int) -> None:
        """Counts one step; `images`: its batch size over all processes."""
        self.bar.update(self.task, completed=done)
        task, now = self.bar.tasks[-1], time.monotonic()
        # One step has no speed yet, only the time since the stage began.
        rate = task.speed or 1 / max(task.elapsed or 0.0, 1e-9)
        speed = f"{rate * images:{'.0f' if rate * images >= 10 else '.2g'}} images/s"
        if self.has_bar:
            shown = "" if accuracy is None else f" · acc {accuracy:.1%}"
            self.bar.update(self.task, numbers=f"loss {loss:.3f}{shown} · {speed}")
        elif self.has_lines and (now - self.last_line >= self.seconds or done >= self.steps):
            self.last_line = now
            shown = "" if accuracy is None else f", accuracy {accuracy:.1%}"
            left = timedelta(seconds=round((self.steps - done) / rate))
            _LOG.info(
                "%s: step %d of %d, loss %.4f%s, %s, %s left",
                *(self.title, done, self.steps, loss, shown, speed, left),
            )

    def message(self, text: str) -> None:
        """Shows one line of text."""
        from rich.text import Text

        if self.has_bar:
            self.bar.console.print(Text(f"{self.title}: {text}"))
        elif self.has_lines:
            _LOG.info("%s: %s", self.title, text)

    def close(self) -> None:
        """Ends the display of the stage, also after an error."""
        if self.has_bar:
            self.bar.stop()
