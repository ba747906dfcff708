"""Accuracy by register placement and head (arXiv 2405.14858, the ablation on register design).

    mambar reproduce table_register_design --budget small data=PATH --seeds 0,1,2

Reviewers doubted the 0.3 points of even over middle placement, so use several seeds. The note of each row has its
paired difference to the default.
"""

from typing import Final

from mambar.paper.claim import Result, claims
from mambar.paper.context import Context
from mambar.paper.networks import base_recipe, registers, with_model
from mambar.paper.statistics import paired
from mambar.paper.sweep import Cell, Table

TITLE: Final = "Register placement and prediction (Base, ImageNet-1k top-1)"
COLUMN: Final = "top-1, %"
DEFAULT: Final = "evenly, reduce and concatenate"
CLAIMS: Final = claims(
    COLUMN,
    {DEFAULT: 82.9, "all at the beginning": 82.1, "all in the middle": 82.6, "evenly, one register read": 81.7},
    version="v1",
    source="arXiv 2405.14858v1",
)
# Row → fields of the model that differ from the default.
CHOICES: Final = {
    DEFAULT: {},
    "all at the beginning": {"placement": "begin"},
    "all in the middle": {"placement": "middle"},
    "evenly, one register read": {"head": "token"},
    "spread": {"placement": "spread"},
    "all at the end": {"placement": "end"},
    "random positions": {"placement": "random"},
    "evenly, mean of registers": {"head": "register_mean"},
    "evenly, mean of patches": {"head": "avg"},
    "no registers, mean of patches": {"head": "avg", "num_registers": 0},
}
_SMOKE: Final = (DEFAULT, "all at the beginning", "evenly, mean of patches")
# At `small`: the paper's rows and one other head; the rest with --more.
_SMALL: Final = (DEFAULT, "all in the middle", "all at the beginning", "evenly, one register read", _SMOKE[2])
# The two rows whose difference reviewers doubted.
_COMPARED: Final = (DEFAULT, "all in the middle")


def cells(context: Context) -> list[Cell]:
    """One cell per choice."""
    base = base_recipe(context)
    default = registers(context, base)
    rows = {"smoke": _SMOKE, "small": tuple(CHOICES) if context.more else _SMALL}.get(context.budget, tuple(CHOICES))
    return [
        Cell(
            row=row,
            recipe=with_model(base, {**default, **CHOICES[row]}),
            compared=context.budget != "small" or row in _COMPARED,
        )
        for row in rows
    ]


def results(context: Context, table: Table) -> list[Result]:
    """The rows with finished runs; each note has the paired difference to the default over common seeds."""
    data = base_recipe(context).data
    reference = table.get(DEFAULT, {})
    found = []
    for row, by_seed in table.items():
        common = [seed for seed in by_seed if seed in reference]
        both = [by_seed[seed] for seed in common], [reference[seed] for seed in common]
        difference = None if row == DEFAULT else paired(*both)
        note = "" if difference is None else f"{row}: {difference.text(' points from the default')}"
        found.append(context.result(row, COLUMN, by_seed, data=data, note=note))
    return found
