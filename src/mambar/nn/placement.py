"""Register positions: the number of patches in front of each register."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mambar.errors import InputError

Grid = tuple[int, int]

# A rule maps the patch grid (rows, cols) and num_registers to the number of patches in front of each register, in row
# order and never decreasing. Register your own: PLACEMENTS["name"] = rule.
Rule = Callable[[Grid, int], Sequence[int]]


@dataclass(frozen=True)
class CountRule:
    """A rule that depends on the number of patches only, not on the shape of the grid."""

    rule: Callable[[int, int], Sequence[int]]

    def __call__(self, grid: Grid, num_registers: int) -> Sequence[int]:
        """The rule applied to rows * cols patches."""
        return self.rule(grid[0] * grid[1], num_registers)


def _evenly(num_patches: int, num_registers: int) -> list[int]:
    """One register after each of the first n runs of M // (n+1) patches; the last run takes the remainder."""
    run = num_patches // (num_registers + 1)
    return [run * (index + 1) for index in range(num_registers)]


def _spread(num_patches: int, num_registers: int) -> list[int]:
    """n+1 runs whose lengths differ by at most one, also on small grids."""
    return [
        (num_patches * (index + 1) + (num_registers + 1) // 2) // (num_registers + 1) for index in range(num_registers)
    ]


def _random(num_patches: int, num_registers: int) -> list[int]:
    """Drawn by a generator that the two counts seed, so every model of these counts has the same positions."""
    draw = random.Random(f"{num_patches} patches, {num_registers} registers")
    return sorted(draw.randint(0, num_patches) for _ in range(num_registers))


PLACEMENTS: dict[str, Rule] = {
    "evenly": CountRule(_evenly),
    "spread": CountRule(_spread),
    "begin": CountRule(lambda num_patches, num_registers: [0] * num_registers),
    "middle": CountRule(lambda num_patches, num_registers: [num_patches // 2] * num_registers),
    "end": CountRule(lambda num_patches, num_registers: [num_patches] * num_registers),
    "random": CountRule(_random),
}


def register_positions(
    placement: str, num_patches: int, num_registers: int, grid: Grid | None = None
) -> tuple[int, ...]:
    """The increasing positions of the registers in the sequence of M patches and n registers.

    `evenly` is the rule of the released Mamba-R code (arXiv 2405.14858 inserts registers evenly): at 224 pixels
    with n = 12 the positions are 15, 31, …, 191 and 16 patches follow the last register. When n + 1 > M all
    registers come first. `spread` differs from it only in how the remainder is distributed. With n = 1, `evenly`
    and `middle` are Vim's class token in the middle, position M // 2.

    Raises `InputError` for an unknown placement, a negative count, a rule that needs the grid where none is given,
    and a rule whose result is invalid.
    """
    rule = PLACEMENTS.get(placement)
    if rule is None:
        raise InputError(f"placement={placement!r} is not known; choose one of {', '.join(PLACEMENTS)}.")
    if num_patches < 0 or num_registers < 0:
        raise InputError(f"{num_patches} patches and {num_registers} registers: counts must be 0 or more.")
    if isinstance(rule, CountRule):
        in_front = rule.rule(num_patches, num_registers)
    elif grid is None:
        raise InputError(f"placement={placement!r} depends on the patch grid; give grid=(rows, cols).")
    else:
        in_front = rule(grid, num_registers)
        _check(placement, in_front, num_patches, num_registers)
    return tuple(patches + index for index, patches in enumerate(in_front))


def _check(placement: str, in_front: Sequence[int], num_patches: int, num_registers: int) -> None:
    ordered = [0, *in_front, num_patches]
    if len(in_front) != num_registers or ordered != sorted(ordered):
        raise InputError(
            f"placement={placement!r} gave {list(in_front)}; it must give {num_registers} never decreasing numbers "
            f"between 0 and {num_patches}, the patches in front of each register."
        )
