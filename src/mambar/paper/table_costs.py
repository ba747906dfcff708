"""Parameters, multiply-adds, throughput and memory of every model.

    mambar reproduce table_costs --budget small --device cuda

Parameters and multiply-adds are counted; speed and memory are measured on the given device.
"""

from typing import Final

from mambar.bench.model import ModelBench
from mambar.bench.model import measure as measure_model
from mambar.models.complexity import complexity
from mambar.models.config import VARIANTS
from mambar.paper.claim import Result, claims
from mambar.paper.context import Context

TITLE: Final = "Costs at 224 pixels"
_SIZES: Final = {"mambar": ("Tiny", "Small", "Base", "Large"), "vim": ("Tiny", "Small", "Base")}
_NAMES: Final = {
    f"{'Mamba-R' if family == 'mambar' else 'Vim'} {size}": f"{family}_{size.lower()}_patch16_224"
    for family, sizes in _SIZES.items()
    for size in sizes
}
PARAMETERS: Final = "parameters, M"

CLAIMS: Final = claims(
    PARAMETERS,
    {"Mamba-R Tiny": 9.0, "Mamba-R Small": 28.0, "Mamba-R Base": 99.0, "Mamba-R Large": 341.0},
    version="v1",
    source="arXiv 2405.14858",
)


def measure(context: Context) -> list[Result]:
    """Counts all sizes; measures Tiny (smoke) or all of them."""
    counted = context.provenance(data="no data")
    results = []
    for row, name in _NAMES.items():
        costs = complexity(VARIANTS[name])
        counts = {PARAMETERS: costs.parameters / 1e6, "multiply-adds, G": costs.linear_macs / 1e9}
        results += [
            Result(row=row, column=column, budget="full", values=(value,), provenance=counted, note="counted")
            for column, value in counts.items()
        ]
    batch = 2 if context.budget == "smoke" else 128
    for row, name in _NAMES.items():
        if context.budget == "smoke" and name != "mambar_tiny_patch16_224":
            continue
        found = measure_model(ModelBench(name=name, batch=batch), device=context.device, rounds=3)
        note = f"batch {batch}, random images"
        for column, cell in zip(("inference img/s", "ms", "GiB", "training img/s"), found.cells, strict=False):
            if isinstance(cell, float) and column.endswith("img/s"):
                results.append(context.result(row, column, cell, data="random images", note=note))
    return results
