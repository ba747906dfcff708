"""Registers go in between the patches and are found again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import golden_cases
from mambar.nn.fused_forward import _indices
from mambar.nn.placement import PLACEMENTS
from mambar.nn.registers import RegisterTokens


def register_tokens(num_registers, placement, dim=3):
    module = RegisterTokens(dim, num_registers, placement).double()
    with torch.no_grad():
        module.embedding.normal_()
        module.position.normal_()
    return module


@pytest.mark.parametrize("placement", PLACEMENTS)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), num_registers=st.integers(0, 14))
def test_split_undoes_insert(placement, rows, cols, num_registers):
    module = register_tokens(num_registers, placement)
    patches = torch.randn(2, rows * cols, 3, dtype=torch.float64)
    sequence = module.insert(patches)
    assert sequence.shape == (2, rows * cols + num_registers, 3)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            apart = module.split(sequence, (rows, cols))
        assert torch.equal(apart.patches, patches)
        assert torch.equal(apart.registers, (module.embedding + module.position).expand(2, -1, -1))


@pytest.mark.gpu
def test_a_captured_split_does_not_cache_its_indices():
    module = register_tokens(3, "evenly").cuda()
    sequence = module.insert(torch.randn(2, 16, 3, dtype=torch.float64, device="cuda")).detach()
    _indices.cache_clear()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = module.split(sequence, (4, 4))
    assert _indices.cache_info().currsize == 0
    graph.replay()
    apart = module.split(sequence, (4, 4))
    assert torch.equal(captured.patches, apart.patches) and torch.equal(captured.registers, apart.registers)


@pytest.mark.parametrize("case", golden_cases.cases("layout"), ids=str)
def test_golden_order(case):
    rows, cols = case.config["grid"]
    module = register_tokens(case.config["num_registers"], "evenly", dim=1)
    with torch.no_grad():
        module.position.zero_()
        module.embedding.copy_(torch.arange(rows * cols, rows * cols + module.num_registers)[None, :, None])
    patches = torch.arange(rows * cols, dtype=torch.float64)[None, :, None]
    assert module.insert(patches).flatten().long().tolist() == case["token_idx"].tolist()


def test_map_has_rows_and_columns():
    module = register_tokens(2, "evenly")
    patches = torch.arange(6.0, dtype=torch.float64).reshape(1, 6, 1).expand(1, 6, 3)
    found = module.split(module.insert(patches), (2, 3)).map()
    assert found.shape == (1, 3, 2, 3)
    assert found[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
