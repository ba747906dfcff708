"""The command line of a benchmark whose numbers are kept as JSON, from which its page and plot are written."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mambar.bench.machine import describe


def run_report(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], list[dict[str, Any]]],
    page: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None],
) -> str:
    """Measures on a GPU, or reads an earlier measurement; writes the files that are asked for and gives the page.

    `page` and `draw` get the machine as "machine" and what `measure` returned as "found".
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
