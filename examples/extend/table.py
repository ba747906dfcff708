"""A table in a file of your own: `mambar reproduce table.py` prints published and own values."""

from mambar.models import VARIANTS, complexity
from mambar.paper import Claim, Result
from mambar.paper.context import Context

TITLE = "Multiply-adds at 224 pixels"
COLUMN = "multiply-adds, G"
CLAIMS = (Claim(row="Mamba-R Base", column="parameters, M", value=99.0, version="v1", source="arXiv 2405.14858"),)


def measure(context: Context) -> list[Result]:
    """Counts parameters and multiply-adds of Mamba-R Base."""
    costs = complexity(VARIANTS["mambar_base_patch16_224"])
    return [
        context.result("Mamba-R Base", "parameters, M", {0: costs.parameters / 1e6}, data="no data"),
        context.result("Mamba-R Base", COLUMN, {0: costs.linear_macs / 1e9}, data="no data"),
    ]
