"""The two networks of the figures are two rows of the tables."""

from dataclasses import replace

import pytest

from mambar.errors import InputError, MambarError
from mambar.paper import table_register_count, table_register_design
from mambar.paper.context import Context
from mambar.paper.pair import one_result, pair_cells, recipe_of_pair, trained_pair
from mambar.paper.sweep import planned_runs


@pytest.fixture
def context(tmp_path):
    return Context(name="figure", budget="small", out=tmp_path, data="digits", seeds=(3, 4))


def test_figures_and_tables_share_their_runs(context):
    vim, registers = (list(planned_runs([cell], context)) for cell in pair_cells(context))
    assert set(vim) | set(registers) <= set(planned_runs(table_register_count.cells(context), context))
    assert set(registers) <= set(planned_runs(table_register_design.cells(context), context))


def test_same_body_but_for_the_registers(context):
    vim, registers = (cell.recipe for cell in pair_cells(context))
    differing = vim.differences(registers)
    assert set(differing) == {"config.num_registers", "config.placement", "config.head", "config.register_reduction"}


def test_unfinished_networks_are_said(context):
    with pytest.raises(MambarError, match="are not finished"):
        trained_pair(replace(context, deadline=0.0))


def test_a_cell_of_a_figure_has_one_seed(context):
    result = one_result(context, "Vim", "norm", 2.0, note="n")
    assert (result.values, result.provenance.seeds, result.budget) == ((2.0,), (3,), "small")


def test_figures_of_trained_runs_train_nothing(context, tmp_path):
    runs = (tmp_path / "vim", tmp_path / "ours")
    assert trained_pair(replace(context, runs=runs, deadline=0.0)) == dict(zip(("Vim", "Mamba-R"), runs, strict=True))
    with pytest.raises(InputError, match="must be two run folders: Vim, then Mamba-R"):
        replace(context, runs=runs[:1])


def test_a_model_directory_without_a_recipe_is_measured_on_the_given_data(context, tmp_path):
    runs = (tmp_path / "vim", tmp_path / "ours")
    assert recipe_of_pair(replace(context, runs=runs)).data == "digits"
    with pytest.raises(InputError, match="needs data=PATH"):
        recipe_of_pair(replace(context, runs=runs, data=None))
