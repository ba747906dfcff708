"""Remakes the pictures of the documentation and records how each was made.

    PYTHONPATH=src python benchmarks/pictures.py                 # all that need no GPU, in about three minutes
    PYTHONPATH=src python benchmarks/pictures.py efficiency

docs/pictures/pictures.json has an entry for each picture: the command, commit, date and machine that made it, and the
sha256 of the file. Pictures of studies on a GPU are not remade here; their entries have the command of the study.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

from mambar.bench.machine import describe
from mambar.paper.context import commit

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
RESOLUTION = ROOT / "benchmarks" / "results" / "2026-11-22-nvidia-h200-resolution.json"


def demo(path: Path) -> None:
    """Norm maps of the two networks that `mambar demo` trains, on photographs."""
    from mambar.recipes.demo import run_demo

    with tempfile.TemporaryDirectory() as out:
        path.write_bytes((run_demo(out=Path(out) / "demo").report.parent / "token_norms.png").read_bytes())


def efficiency(path: Path) -> None:
    """Speed and memory by image size, from the numbers of the measurement."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "models"))
    from resolution_gpu import draw

    draw(json.loads(RESOLUTION.read_text("utf-8")), path)


MAKERS: dict[str, Callable[[Path], None]] = {"demo": demo, "efficiency": efficiency}


def main() -> None:
    """Makes the named pictures, or all, and updates pictures.json beside them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help=f"pictures to make: {', '.join(MAKERS)}; default: all of these")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder of the pictures and of pictures.json")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(MAKERS)
    if unknown:
        parser.error(f"no picture is called {', '.join(sorted(unknown))}; choose from {', '.join(MAKERS)}")
    entries = arguments.out / "pictures.json"
    content = json.loads(entries.read_text("utf-8")) if entries.is_file() else {}
    for name in arguments.names or MAKERS:
        path = arguments.out / f"{name}.png"
        MAKERS[name](path)
        content[path.name] = {
            "command": f"python benchmarks/pictures.py {name}",
            "commit": commit(),
            "date": date.today().isoformat(),
            "machine": describe("cpu"),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        entries.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n", "utf-8")
        print(path)


if __name__ == "__main__":
    main()
