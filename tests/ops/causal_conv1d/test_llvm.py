import pytest
import torch

from llvm_machines import every_machine
from mambar.ops import causal_conv1d
from mambar.ops.causal_conv1d import llvm
from op_inputs import relative_error


@every_machine
@pytest.mark.parametrize("taps", [1, 4, 7])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length, inner", [(1, 5), (3, 64), (19, 131)])
def test_every_vector_width_equals_the_reference(machine, taps, reverse, length, inner, monkeypatch):
    monkeypatch.setenv("MAMBAR_LLVM_MACHINE", machine)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, dy = (
        torch.randn(shape, generator=generator)
        for shape in ((2, length, inner), (inner, taps), (inner,), (2, length, inner))
    )
    results = []
    for backend, dtype in (("llvm", torch.float32), ("reference", torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]
        y = causal_conv1d(*leaves, reverse=reverse, backend=backend)
        results.append([y, *torch.autograd.grad(y, leaves, dy.to(dtype))])
    for found, right in zip(*results, strict=True):
        assert relative_error(found, right) <= 1e-6


def test_a_gradient_can_be_accumulated():
    x, weight, dy = torch.randn(2, 9, 20), torch.randn(20, 4), torch.randn(2, 9, 20)
    dx, dweight, _ = llvm.backward(dy, x, weight, None, silu=True, reverse=True)
    base = torch.randn(2, 9, 40)
    target = base.clone()
    again, none = llvm.backward_into(target[..., 20:], dy, x, weight, None, silu=True, reverse=True, accumulate=True)
    assert torch.equal(target[..., 20:], base[..., 20:] + dx) and torch.equal(target[..., :20], base[..., :20])
    assert torch.equal(again, dweight) and none is None
