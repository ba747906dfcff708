"""The rows of the ablations are those of the design; runs are shared with the other tables."""

import pytest

from mambar.paper import table_register_count, table_register_design
from mambar.paper.ablations import ABLATIONS
from mambar.paper.context import Context
from mambar.paper.pair import pair_cells
from mambar.paper.sweep import planned_runs


@pytest.fixture
def context(tmp_path):
    return Context(name="a", budget="small", out=tmp_path, data="d", recipe="tiny_imagenet", seeds=(0, 1, 2))


def rows(name, context):
    return {cell.row: cell.recipe for cell in ABLATIONS[name].cells(context)}


def test_all_runs_of_the_design_are_there(context):
    counts = {name: len(planned_runs(table.cells(context), context)) for name, table in ABLATIONS.items()}
    # 7 rows, 2 rows, and 8 rows of two networks beside Vim; all beside Mamba-R, each with three seeds.
    assert counts == {"ablation_registers": 24, "ablation_transformer": 9, "ablation_training": 54}
    assert all(next(iter(rows(name, context))) == "Mamba-R" for name in ABLATIONS)


def test_rows_change_what_they_say_and_nothing_else(context):
    registers, training = rows("ablation_registers", context), rows("ablation_training", context)
    base = registers["Mamba-R"]
    changed = {row: base.differences(recipe) for row, recipe in registers.items()}
    assert set(changed["24 registers"]) == {"config.num_registers", "config.register_reduction"}
    assert registers["24 registers"].config["register_reduction"] == 2
    assert set(changed["all in the middle"]) == {"config.placement"}
    assert set(changed["evenly, mean of patches"]) == {"config.head"}
    assert base.differences(training["Mamba-R, learning rate × 2"]) == {"stages.0.lr": (1e-3, 2e-3)}
    assert training["Vim"].differences(training["Vim, epochs × 0.5"]) == {"stages.0.epochs": (60, 30)}
    assert training["Vim, drop path 0.3"].stages[0].drop_path_rate == 0.3
    (deit, with_registers) = list(rows("ablation_transformer", context).values())[1:]
    assert deit.differences(with_registers) == {"config.reg_tokens": (0, 4)}
    assert deit.stages == base.stages and dict(deit.config) == {"patch_size": 4, "reg_tokens": 0}


def test_rows_that_other_tables_have_are_trained_once(context):
    def runs(cells):
        return set(planned_runs(cells, context))

    ours = runs(ABLATIONS["ablation_registers"].cells(context))
    assert len(ours & runs(pair_cells(context))) == 3
    assert len(ours & runs(table_register_count.cells(context))) == 9
    assert len(ours & runs(table_register_design.cells(context))) == 15
