"""The command line of a benchmark script: measures, stores the numbers as JSON, writes a page and a plot."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mambar.bench.machine import describe


def run_benchmark(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], list[dict[str, Any]]],
    page: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None],
) -> str:
    """The page of a measurement on a GPU, or of one that is read from a file; writes the requested files.

    `page` and `draw` get a mapping: "machine" describes the machine, "found" is the result of `measure`.
    """
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--from", dest="given", type=Path, help="JSON file of an earlier run; nothing is measured")
    parser.add_argument("--page", type=Path, help="Markdown file to write")
    parser.add_argument("--plot", type=Path, help="image file to write")
    arguments = parser.parse_args()
    if arguments.given:
        measured = json.loads(arguments.given.read_text("utf-8"))
    else:
        measured = {"machine": describe("cuda"), "found": measure(arguments)}
    if arguments.out:
        arguments.out.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    text = page(measured)
    if arguments.page:
        arguments.page.write_text(text, encoding="utf-8")
    if arguments.plot:
        draw(measured, arguments.plot)
    return text
