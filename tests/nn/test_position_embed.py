"""The position table on other grids."""

import pytest
import torch

import golden_cases
from mambar.nn.position_embed import PositionEmbed, resize_positions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", golden_cases.cases("pos_interp"), ids=str)
def test_golden_resize(case, dtype):
    old, new = case["pos_embed"].to(dtype), case["out"]
    grids = [(round(table.shape[1] ** 0.5),) * 2 for table in (old, new)]
    golden_cases.assert_near(resize_positions(old, *grids), new, {torch.float64: 1e-12, torch.float32: 1e-5}[dtype])


@pytest.mark.parametrize("case", golden_cases.cases("pos_interp_vim"), ids=str)
def test_golden_resize_of_the_grid_in_vims_transfer(case):
    """The released transfer takes row 0 for the class token (it sits in the middle); only the resize is checked."""
    old, new = case["pos_embed"][:, 1:], case["out"][:, 1:]
    grids = [(round(table.shape[1] ** 0.5),) * 2 for table in (old, new)]
    golden_cases.assert_near(resize_positions(old.double(), *grids), new, 1e-12)


def test_the_same_grid_returns_the_table_itself():
    table = torch.randn(1, 6, 4)
    assert resize_positions(table, (2, 3), (2, 3)) is table


def test_another_grid_in_forward_changes_the_count_only():
    module = PositionEmbed(4, (2, 3))
    with torch.no_grad():
        module.weight.fill_(0.5)
    patches = torch.zeros(1, 20, 4)
    assert torch.allclose(module(patches, (4, 5)), torch.full((1, 20, 4), 0.5))
