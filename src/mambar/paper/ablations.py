"""Ablations of the register study: accuracy and all outcomes of table_artifacts for each row, with several seeds.

    mambar reproduce ablation_registers --budget small --recipe tiny_imagenet data=PATH --seeds 0,1,2
    mambar reproduce ablation_transformer --budget small --recipe tiny_imagenet data=PATH --seeds 0,1,2
    mambar reproduce ablation_training --budget small --recipe tiny_imagenet data=PATH --seeds 0,1,2

The first row is Mamba-R; differences.md has the difference of every row and outcome to it, paired by seed. Rows that
other tables have too are trained once. The paper's ablations of accuracy are table_register_count and
table_register_design.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from mambar.atomic_files import write_files
from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.networks import VIM, base_recipe, head_width, model_config, reduction, registers, with_model
from mambar.paper.outcome_table import difference_files, layer_files, measure_cells, outcome_results
from mambar.paper.primary_outcomes import TREATED
from mambar.paper.sweep import Cell
from mambar.paper.table_register_design import CHOICES
from mambar.training.recipe import Recipe

# Factors of the learning rate and of the number of epochs, and values of the two regularizers.
_FACTORS: Final = (0.5, 2.0)
_WEIGHT_DECAYS: Final = (0.0, 0.2)
_DROP_PATHS: Final = (0.0, 0.3)
_DEIT: Final = "timm/deit_tiny_patch16_224"
_HEAD_DIM: Final = 64


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """An ablation with the names that the module of a table has."""

    TITLE: str
    cells: Callable[[Context], list[Cell]]
    measure: Callable[[Context], list[Result]]
    CLAIMS: tuple[Claim, ...] = ()


def _register_rows(context: Context, base: Recipe) -> dict[str, Recipe]:
    """Number of registers, placement and head; the reduction keeps the head's width."""
    default = registers(context, base)
    dim, width = model_config(base).embed_dim, head_width(context, base)
    rows = {
        f"{count} registers": {"num_registers": count, "register_reduction": reduction(dim, count, width)}
        for count in (4, 24)
    }
    rows |= {
        row: {**default, **CHOICES[row]}
        for row in (
            "all in the middle",
            "all at the beginning",
            "evenly, mean of registers",
            "evenly, one register read",
            "evenly, mean of patches",
        )
    }
    return {row: with_model(base, fields) for row, fields in rows.items()}


def _transformer_rows(context: Context, base: Recipe) -> dict[str, Recipe]:
    """DeiT-Tiny of the same patch size; a smaller network has its width and depth too."""
    shape = {name: base.config[name] for name in ("patch_size", "embed_dim", "depth") if name in base.config}
    if "embed_dim" in shape:
        shape["num_heads"] = max(1, shape["embed_dim"] // _HEAD_DIM)
    return {
        f"DeiT, {count} registers": base.replace(model=_DEIT, config={**shape, "reg_tokens": count}) for count in (0, 4)
    }


def _training_rows(context: Context, base: Recipe) -> dict[str, Recipe]:
    """Learning rate, weight decay, drop path and number of epochs, of Vim and Mamba-R each."""
    networks = {"Vim": with_model(base, VIM), TREATED: with_model(base, registers(context, base))}
    stage = base.stages[0]
    changes: dict[str, dict[str, Any]] = {
        **{f"learning rate × {factor:g}": {"lr": factor * stage.lr} for factor in _FACTORS},
        **{f"weight decay {value:g}": {"weight_decay": value} for value in _WEIGHT_DECAYS},
        **{f"drop path {value:g}": {"drop_path_rate": value} for value in _DROP_PATHS},
        **{f"epochs × {factor:g}": {"epochs": max(1, round(factor * stage.epochs))} for factor in _FACTORS},
    }
    rows = {"Vim": networks["Vim"]}
    rows |= {
        f"{name}, {row}": recipe.replace(**new) for row, new in changes.items() for name, recipe in networks.items()
    }
    return rows


Rows = Callable[[Context, Recipe], dict[str, Recipe]]


def _cells(context: Context, *, rows: Rows) -> list[Cell]:
    base = base_recipe(context)
    found = {TREATED: with_model(base, registers(context, base)), **rows(context, base)}
    if context.budget == "smoke":
        found = dict(list(found.items())[:2])
    return [Cell(row=row, recipe=recipe) for row, recipe in found.items()]


def _measure(context: Context, *, rows: Rows) -> list[Result]:
    cells, data = _cells(context, rows=rows), base_recipe(context).data
    values, layers = measure_cells(cells, context)
    files = difference_files(values, TREATED) | layer_files(cells, context, layers, data=data)
    write_files(context.directory / context.name, files)
    return outcome_results(values, context, data=data)


def _ablation(title: str, rows: Rows) -> Ablation:
    return Ablation(TITLE=title, cells=partial(_cells, rows=rows), measure=partial(_measure, rows=rows))


ABLATIONS: Final = {
    "ablation_registers": _ablation("Outcomes by number, placement and head of the registers", _register_rows),
    "ablation_transformer": _ablation("Outcomes of DeiT-Tiny with 0 and 4 registers", _transformer_rows),
    "ablation_training": _ablation(
        "Outcomes by learning rate, weight decay, drop path and length of training", _training_rows
    ),
}
