"""Accuracy by number of registers (arXiv 2405.14858, the ablation on the number of registers).

    mambar reproduce table_register_count --budget small data=PATH

One register in the middle is Vim. The paper's control is Vim with its output widened to the same 2304 features. The
paper does not describe the widening layer; here it is that of the register head (see `mambar.nn.heads.WidenedHead`).
"""

from typing import Final

from mambar.paper.claim import Result, claims
from mambar.paper.context import Context
from mambar.paper.networks import VIM, base_recipe, head_width, model_config, reduction, with_model
from mambar.paper.sweep import Cell, Table

TITLE: Final = "Number of registers (Base, ImageNet-1k top-1)"
COLUMN: Final = "top-1, %"
WIDENED: Final = "n = 1 (Vim), output widened"
CLAIMS: Final = claims(
    COLUMN, {"n = 1 (Vim)": 81.8, WIDENED: 81.9, "n = 12": 82.9}, version="v1", source="arXiv 2405.14858v1"
)
# The two rows that the paper's claim compares.
_COMPARED: Final = (1, 12)
COUNTS: Final = {"smoke": (1, 4), "small": (1, 4, 12, 24), "full": (1, 4, 12, 24)}


def cells(context: Context) -> list[Cell]:
    """One cell per count and the control; the reduction keeps n·(D/r) near that of 12 registers at r = 4."""
    base = base_recipe(context)
    dim, width = model_config(base).embed_dim, head_width(context, base)
    found = []
    for count in COUNTS[context.budget]:
        fields = VIM if count == 1 else {"num_registers": count, "register_reduction": reduction(dim, count, width)}
        row = "n = 1 (Vim)" if count == 1 else f"n = {count}"
        compared = context.budget != "small" or count in _COMPARED
        found.append(Cell(row=row, recipe=with_model(base, fields), compared=compared))
    control = with_model(base, {**VIM, "head": "widened"})
    return [*found, Cell(row=WIDENED, recipe=control, compared=context.budget != "small")]


def results(context: Context, table: Table) -> list[Result]:
    """The rows with finished runs."""
    return context.results(COLUMN, table, data=base_recipe(context).data)
