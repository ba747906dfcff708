import pytest
import torch

pytest.importorskip("llvmlite")

from mambar.errors import InputError
from mambar.ops.llvm import matmul


@pytest.fixture(params=["default", "onednn"])
def choice(request, monkeypatch):
    monkeypatch.setenv("MAMBAR_CPU_MATMUL", request.param)
    matmul._uses_onednn.cache_clear()
    yield request.param
    matmul._uses_onednn.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_any_layout(choice, dtype):
    a, b = torch.randn(7, 12).to(dtype), torch.randn(12, 9).to(dtype)
    right = (a.double() @ b.double()).to(dtype)
    for left in (a, a.t().contiguous().t()):
        for other in (b, b.t().contiguous().t()):
            torch.testing.assert_close(matmul.matmul(left, other), right)
    x = torch.randn(2, 3, 20).to(dtype)[..., 4:16]
    torch.testing.assert_close(matmul.linear(x, b.t()), (x.double() @ b.double()).to(dtype))


def test_an_unknown_choice_is_rejected_with_the_allowed_ones(monkeypatch):
    monkeypatch.setenv("MAMBAR_CPU_MATMUL", "blas")
    matmul._uses_onednn.cache_clear()
    with pytest.raises(InputError, match="auto, default or onednn"):
        matmul.matmul(torch.ones(2, 2), torch.ones(2, 2))


def test_without_the_operator_the_default_is_used(choice, monkeypatch):
    def gone(a, b):
        raise AttributeError("_linear_pointwise")

    monkeypatch.setattr(matmul, "_onednn", gone)
    assert torch.equal(matmul.matmul(torch.ones(2, 2), torch.ones(2, 2)), torch.full((2, 2), 2.0))
