"""Output of the command line: one printable line per message, on any terminal or none."""

import io
import json
import logging
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import typer

from mambar.messages import printable

logger = logging.getLogger("mambar.cli")


def set_up_streams() -> None:
    """Makes stdout and stderr accept any text.

    Streams that are closed (services, pythonw, `2>&-`) become the null device, and so do their file descriptors, which
    the next opened file would get otherwise. Characters that a stream's encoding lacks are replaced when written.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def escaped(text: str) -> str:
    """The JSON text with control characters, and characters that stdout cannot encode, escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    is_utf8 = encoding.lower().replace("-", "") == "utf8"
    return "".join(
        c if (c.isprintable() and (is_utf8 or c.isascii())) or c == "\n" else json.dumps(c)[1:-1] for c in text
    )


def say(text: object) -> None:
    """Prints one line on stdout; control characters in names are replaced."""
    typer.echo(printable(str(text)))


def say_table(rows: Iterable[tuple[str, object]], *, indent: str = "") -> None:
    """Prints names and values in two aligned columns; long values continue on the next line, within 80 columns."""
    lines = list(rows)
    width = len(indent) + max((len(name) for name, _ in lines), default=0) + 2
    for name, value in lines:
        wrapped = textwrap.wrap(str(value), max(80 - width, 30), break_long_words=False, break_on_hyphens=False) or [""]
        for first, line in zip([indent + name, *[""] * len(wrapped)], wrapped, strict=False):
            say(f"{first:{width}}{line}".rstrip())


def say_columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table; cells that do not fit into 80 columns continue on the next line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    text = io.StringIO()
    Console(file=text, width=80, color_system=None).print(table)
    for line in text.getvalue().splitlines():
        say(line.rstrip())


class PrintableFormatter(logging.Formatter):
    """Formats each message as one line; the traceback of --debug follows."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message as `printable` gives it."""
        return printable(super().formatMessage(record))


class Progress:
    """Logs every few seconds how many images a part of the work has processed and, with their total, the time left."""

    def __init__(self, *, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self.logged = time.monotonic()
        # The part, and the time and the images of its first call.
        self.start = ("", self.logged, 0)

    def __call__(self, part: str, done: int, total: int | None = None) -> None:
        now = time.monotonic()
        if part != self.start[0]:
            self.start = (part, now, done)
        if now - self.logged < self.seconds:
            return
        self.logged = now
        _, began, first = self.start
        if total is None or done == first:
            logger.info("%s: %s images", part, f"{done:,}")
            return
        left = timedelta(seconds=round((total - done) * (now - began) / (done - first)))
        logger.info("%s: %s of %s images, %s left", part, f"{done:,}", f"{total:,}", left)
