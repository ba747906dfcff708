"""Loads hostile files in a process of its own, with little memory; run by tests/hub/test_hostile_checkpoints.py.

    python hostile_loading.py FREE_BYTES files PATH...
    python hostile_loading.py FREE_BYTES mutants FIRST COUNT FILE...

Prints one JSON object: outcomes counted by kind, unexpected exceptions with their mutant or file, peak growth.
"""

import json
import random
import resource
import sys
from collections import Counter
from pathlib import Path


def mutate(data: bytes, seed: int) -> bytes:
    """One damage or forgery of the bytes, drawn by the seed: half of them where headers and directories stand."""
    draw = random.Random(seed)
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        size = len(changed)
        place = draw.choice(
            [draw.randrange(size), draw.randrange(min(size, 2000)), size - 1 - draw.randrange(min(size, 2000))]
        )
        length = min(draw.choice([1, 1, 2, 4, 8, 100]), size - place)
        kind = draw.randrange(7)
        if kind == 0:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            changed[place : place + length] = draw.choice([b"\0", b"\xff", b"9", b"\x80"]) * length
        elif kind == 3:
            changed[place : place + length] = draw.randbytes(length)
        elif kind == 4:
            changed[place:place] = draw.randbytes(length)
        elif kind == 5:
            del changed[place : place + length]
        else:
            other = draw.randrange(size)
            changed[place : place + length] = changed[other : other + length]
        if not changed:
            return b""
    return bytes(changed)


def outcome(path: Path) -> tuple[str, str]:
    """("loaded" or "refused" or "unexpected", message)."""
    import mambar
    from mambar.errors import CheckpointError

    try:
        mambar.load(path)
    except CheckpointError as error:
        message = str(error)
        one_line = message.isprintable() and len(message) < 500
        return ("refused", message) if one_line else ("unexpected", f"message: {message!r}")
    except BaseException as error:
        return "unexpected", f"{type(error).__name__}: {error}"
    return "loaded", ""


def resident(field: str) -> int:
    """Bytes of memory now ("VmRSS") or at most since the last reset ("VmHWM").

    Not from getrusage: there a new process begins with its parent's peak.
    """
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def limit_memory(free: int) -> None:
    """From here on the process may take `free` more bytes of address space."""
    now = int(Path("/proc/self/statm").read_text("utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + free, now + free))


def main(free: str, mode: str, *arguments: str) -> None:
    import torch

    torch.set_num_threads(1)
    if mode == "mutants":
        seeds, originals = range(int(arguments[0]), int(arguments[0]) + int(arguments[1])), map(Path, arguments[2:])
        data = {original: original.read_bytes() for original in originals}
        cases = (
            (f"{original.name} {seed}", original.with_name("mutant" + original.suffix), mutate(content, seed))
            for original, content in data.items()
            for seed in seeds
        )
        known = list(data)
    else:
        cases = ((each, Path(each), None) for each in arguments)
        known = [Path(arguments[0])]
    # What loading needs once, imports above all, is no growth.
    for original in known:
        outcome(original)
    Path("/proc/self/clear_refs").write_text("5", "utf-8")
    before = resident("VmRSS")
    limit_memory(int(free))
    counted: Counter[str] = Counter()
    unexpected, messages = [], {}
    for name, path, content in cases:
        if content is not None:
            path.write_bytes(content)
        kind, message = outcome(path)
        counted[kind] += 1
        if kind == "unexpected":
            unexpected.append([name, message])
        if content is None:
            messages[name] = [kind, message]
    report = {
        "counted": counted,
        "unexpected": unexpected[:20],
        "growth": resident("VmHWM") - before,
        "messages": messages,
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
