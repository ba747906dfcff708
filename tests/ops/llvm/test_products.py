import pytest
import torch

pytest.importorskip("llvmlite")

from mambar.errors import InputError
from mambar.ops.llvm import products


@pytest.fixture(params=["default", "onednn"])
def choice(request, monkeypatch):
    monkeypatch.setenv("MAMBAR_CPU_MATMUL", request.param)
    products._onednn_chosen.cache_clear()
    yield request.param
    products._onednn_chosen.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_any_layout(choice, dtype):
    a, b = torch.randn(7, 12).to(dtype), torch.randn(12, 9).to(dtype)
    right = (a.double() @ b.double()).to(dtype)
    for left in (a, a.t().contiguous().t()):
        for other in (b, b.t().contiguous().t()):
            torch.testing.assert_close(products.matmul(left, other), right)
    x = torch.randn(2, 3, 20).to(dtype)[..., 4:16]
    torch.testing.assert_close(products.linear(x, b.t()), (x.double() @ b.double()).to(dtype))


def test_an_unknown_choice_is_named(monkeypatch):
    monkeypatch.setenv("MAMBAR_CPU_MATMUL", "blas")
    products._onednn_chosen.cache_clear()
    with pytest.raises(InputError, match="auto, default or onednn"):
        products.matmul(torch.ones(2, 2), torch.ones(2, 2))


def test_where_the_operation_is_missing_the_default_is_taken(choice, monkeypatch):
    def gone(a, b):
        raise AttributeError("_linear_pointwise")

    monkeypatch.setattr(products, "_onednn", gone)
    assert torch.equal(products.matmul(torch.ones(2, 2), torch.ones(2, 2)), torch.full((2, 2), 2.0))
