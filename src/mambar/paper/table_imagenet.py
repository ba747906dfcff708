"""ImageNet-1k accuracy of all sizes (arXiv 2405.14858, both editions).

    mambar reproduce table_imagenet --budget full data=/data/imagenet

`full` evaluates the released weights; models without released weights stay *not run* (train them with their recipe).
`small` is not available: a comparison of sizes needs the full scale.
"""

from typing import Final

from mambar.errors import InputError
from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.networks import VIM, base_recipe, with_model
from mambar.paper.sweep import Cell, train_cells

TITLE: Final = "ImageNet-1k top-1"
COLUMN: Final = "top-1, %"
_V1: Final = "arXiv 2405.14858v1"
_V2: Final = "arXiv 2405.14858v2 and the official README"

CLAIMS: Final = (
    Claim(row="Mamba-R Tiny 224", column=COLUMN, value=77.4, version="v1", source=_V1, known="derived"),
    Claim(row="Mamba-R Small 224", column=COLUMN, value=81.1, version="v1", source=_V1, known="derived"),
    Claim(row="Mamba-R Base 224", column=COLUMN, value=82.9, version="v1", source=_V1),
    Claim(row="Mamba-R Large 224", column=COLUMN, value=83.2, version="v1", source=_V1),
    Claim(row="Mamba-R Large 384", column=COLUMN, value=84.5, version="v1", source=_V1),
    Claim(row="Mamba-R Small 224", column=COLUMN, value=81.4, version="v2", source=_V2),
    Claim(row="Mamba-R Base 224", column=COLUMN, value=83.0, version="v2", source=_V2),
    Claim(row="Mamba-R Large 224", column=COLUMN, value=83.6, version="v2", source=_V2),
    Claim(row="Mamba-R Large 384", column=COLUMN, value=84.5, version="v2", source=_V2),
    Claim(row="Vim Tiny 224", column=COLUMN, value=76.1, version="v1", source=_V1),
    Claim(row="Vim Small 224", column=COLUMN, value=80.5, version="v1", source=_V1),
    Claim(row="Vim Base 224", column=COLUMN, value=81.8, version="v1", source=_V1),
)
_RELEASED: Final = {
    "Mamba-R Small 224": "mambar_small_patch16_224",
    "Mamba-R Base 224": "mambar_base_patch16_224",
    "Mamba-R Large 224": "mambar_large_patch16_224",
}


def measure(context: Context) -> list[Result]:
    """Evaluates released weights (full), or trains tiny networks for two rows (smoke)."""
    if context.budget == "small":
        raise InputError("table_imagenet has no small budget; use smoke, or full with data=PATH of ImageNet.")
    if context.budget == "smoke":
        return _smoke(context)
    base = base_recipe(context)
    from mambar.hub import create_model
    from mambar.models.timm_vit import as_vision_mamba
    from mambar.recipes.evaluate_run import evaluate_run

    results = []
    for row, name in _RELEASED.items():
        model = as_vision_mamba(create_model(name, pretrained=True), "This table")
        given = {"data": base.data, "data_options": base.data_options}
        found = evaluate_run(model, **given, device=context.device, num_workers=context.num_workers)
        note = f"{row}: released weights, crop 1.0"
        results.append(context.result(row, COLUMN, 100 * found.top1, data=base.data, note=note))
    return results


def _smoke(context: Context) -> list[Result]:
    base = base_recipe(context)
    cells = [
        Cell(row="Mamba-R Tiny 224", recipe=with_model(base, {"num_registers": 4, "register_reduction": 1})),
        Cell(row="Vim Tiny 224", recipe=with_model(base, VIM)),
    ]
    table = train_cells(cells, context)
    note = "networks of width 16 on handwritten digits, a test of the code path"
    return context.results(COLUMN, table, data=base.data, note=note)
