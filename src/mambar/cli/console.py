"""What reaches a terminal: names of files and classes are data, never control sequences."""

import json
import logging

import typer

from mambar.messages import printable


def escaped(text: str) -> str:
    """JSON text that means the same and holds nothing a terminal would obey (json.dumps leaves U+009B, U+202E, …)."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def say(text: object) -> None:
    """Prints one line on stdout; whatever a name in it holds, it stays one line."""
    typer.echo(printable(str(text)))


class PrintableFormatter(logging.Formatter):
    """Keeps each message on its line; a traceback, which only --debug asks for, keeps its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message as `printable` gives it."""
        return printable(super().formatMessage(record))
