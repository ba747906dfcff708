"""Reads damaged and forged images in a process with little memory; run by tests/data/loading/test_images.py.

    python hostile_images.py FREE_BYTES READER FIRST COUNT FILE...

READER is read_image or read_mask. Mutant number k is drawn from file k modulo their number. Prints one JSON object:
outcomes counted, unexpected exceptions with their mutant, and by how much memory grew at most.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from hostile_loading import limit_memory, mutate, resident


def main(free: str, reader: str, first: str, count: str, *files: str) -> None:
    from mambar.data.loading.images import read_image
    from mambar.data.segmentation.masks import read_mask
    from mambar.errors import ImageError

    read = {"read_image": read_image, "read_mask": lambda data: read_mask(data, name="mutant")}[reader]
    originals = [Path(file).read_bytes() for file in files]
    for data in originals:
        read(data)
    Path("/proc/self/clear_refs").write_text("5", "utf-8")
    before = resident("VmRSS")
    limit_memory(int(free))
    counted: Counter[str] = Counter()
    unexpected = []
    for seed in range(int(first), int(first) + int(count)):
        try:
            read(mutate(originals[seed % len(originals)], seed))
        except ImageError as error:
            message = str(error)
            counted["refused"] += 1
            if not message.isprintable() or len(message) > 400:
                unexpected.append([seed, repr(message)])
        except BaseException as error:
            counted["unexpected"] += 1
            unexpected.append([seed, f"{type(error).__name__}: {error}"])
        else:
            counted["read"] += 1
    growth = resident("VmHWM") - before
    sys.stdout.write(json.dumps({"counted": counted, "unexpected": unexpected[:20], "growth": growth}))


if __name__ == "__main__":
    main(*sys.argv[1:])
