"""Where registers stand and what is read (arXiv 2405.14858, the ablation on register design).

    mambar reproduce table_register_design budget=small data=PATH

Reviewers doubted the 0.3 points of even over middle placement: give several seeds; the paired difference to the
default stands beside each row.
"""

from typing import Final

from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.networks import base_recipe, dim_of, reduction, with_model
from mambar.paper.statistics import paired
from mambar.paper.sweep import Cell, train_cells

TITLE: Final = "Register placement and prediction (Base, ImageNet-1k top-1)"
COLUMN: Final = "top-1, %"
DEFAULT: Final = "evenly, reduce and concatenate"


def _claim(row: str, value: float) -> Claim:
    return Claim(row=row, column=COLUMN, value=value, version="v1", source="arXiv 2405.14858v1")


CLAIMS: Final = (
    _claim(DEFAULT, 82.9),
    _claim("all at the beginning", 82.1),
    _claim("all in the middle", 82.6),
    _claim("evenly, one register read", 81.7),
)
# Row → fields of the model that differ from the default.
CHOICES: Final = {
    DEFAULT: {},
    "all at the beginning": {"placement": "begin"},
    "all in the middle": {"placement": "middle"},
    "evenly, one register read": {"head": "first"},
    "truly even": {"placement": "spread"},
    "all at the end": {"placement": "end"},
    "random places": {"placement": "random"},
    "evenly, mean of registers": {"head": "mean"},
    "evenly, mean of patches": {"head": "patches"},
    "no registers, mean of patches": {"head": "patches", "num_registers": 0},
}
_SMOKE: Final = (DEFAULT, "all at the beginning", "evenly, mean of patches")


def cells(context: Context) -> list[Cell]:
    """One cell a choice."""
    base = base_recipe(context)
    dim = dim_of(base)
    count = 4 if context.budget == "smoke" else 12
    width = dim if context.budget == "smoke" else 3 * dim
    default = {"num_registers": count, "reduce": reduction(dim, count, width)}
    rows = _SMOKE if context.budget == "smoke" else tuple(CHOICES)
    return [Cell(row=row, recipe=with_model(base, {**default, **CHOICES[row]})) for row in rows]


def measure(context: Context) -> list[Result]:
    """Trains every choice with every seed; each row's note has its paired difference to the default."""
    chosen = cells(context)
    table = train_cells(chosen, context)
    where = context.provenance(data=chosen[0].recipe.data, seeds=context.seeds)
    reference = tuple(table[DEFAULT][seed] for seed in context.seeds)
    results = []
    for row, by_seed in table.items():
        values = tuple(by_seed[seed] for seed in context.seeds)
        difference = None if row == DEFAULT else paired(values, reference)
        note = ""
        if difference is not None:
            verdict = "decided" if difference.decided else "not decided"
            note = f"{row}: {difference.mean:+.2f} ± {difference.half_width:.2f} points to the default, {verdict}"
        results.append(
            Result(row=row, column=COLUMN, budget=context.budget, values=values, provenance=where, note=note)
        )
    return results
