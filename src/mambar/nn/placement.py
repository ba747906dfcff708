"""Where the registers stand in the token sequence: the one place that decides it."""

import random
from collections.abc import Callable

from mambar.errors import InputError

# A rule maps (num_patches, num_registers) to the number of patches in front of each register, never decreasing.
Rule = Callable[[int, int], list[int]]


def _evenly(num_patches: int, num_registers: int) -> list[int]:
    """One register after each of the first n runs of M // (n+1) patches; the last run takes the remainder."""
    run = num_patches // (num_registers + 1)
    return [run * (index + 1) for index in range(num_registers)]


def _spread(num_patches: int, num_registers: int) -> list[int]:
    """Truly even: n+1 runs whose lengths differ by at most one, also on small grids."""
    return [
        (num_patches * (index + 1) + (num_registers + 1) // 2) // (num_registers + 1) for index in range(num_registers)
    ]


def _begin(num_patches: int, num_registers: int) -> list[int]:
    return [0] * num_registers


def _middle(num_patches: int, num_registers: int) -> list[int]:
    return [num_patches // 2] * num_registers


def _end(num_patches: int, num_registers: int) -> list[int]:
    return [num_patches] * num_registers


def _random(num_patches: int, num_registers: int) -> list[int]:
    """Drawn once, by a generator that only the two counts seed: a model finds its registers again."""
    draw = random.Random(f"{num_patches} patches, {num_registers} registers")
    return sorted(draw.randint(0, num_patches) for _ in range(num_registers))


PLACEMENTS: dict[str, Rule] = {
    "evenly": _evenly,
    "spread": _spread,
    "begin": _begin,
    "middle": _middle,
    "end": _end,
    "random": _random,
}


def positions(placement: str, num_patches: int, num_registers: int) -> tuple[int, ...]:
    """Gives the increasing positions of the registers in the sequence of M patches and n registers.

    `evenly` is the rule of the released Mamba-R code (arXiv 2405.14858 inserts registers evenly): at 224 pixels
    with n = 12 the positions are 15, 31, …, 191 and 16 patches follow the last register. When n + 1 > M all
    registers come first. `spread` differs from it only in how the remainder is shared out. With n = 1, `evenly`
    and `middle` are Vim's class token in the middle, position M // 2.

    Raises `InputError` for an unknown placement or a negative count.
    """
    rule = PLACEMENTS.get(placement)
    if rule is None:
        raise InputError(f"placement={placement!r} is not known; choose one of {', '.join(PLACEMENTS)}.")
    if num_patches < 0 or num_registers < 0:
        raise InputError(f"{num_patches} patches and {num_registers} registers: counts must be 0 or more.")
    in_front = rule(num_patches, num_registers)
    return tuple(patches + index for index, patches in enumerate(in_front))
