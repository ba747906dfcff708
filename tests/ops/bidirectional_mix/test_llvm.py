import pytest
import torch

from llvm_machines import every_machine
from mambar.ops import bidirectional_mix
from mambar.ops.bidirectional_mix import ScanDirection, llvm
from op_inputs import relative_error


def draw(inner, state, rank, taps, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return ScanDirection(
        conv_weight=normal(inner, taps),
        conv_bias=normal(inner),
        x_proj=normal(rank + 2 * state, inner) * inner**-0.5,
        dt_proj=normal(inner, rank) * rank**-0.5,
        dt_bias=normal(inner) - 2,
        A=-normal(inner, state).exp(),
        D=normal(inner),
    )


@every_machine
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("inner, states", [(70, (5, 5)), (128, (16, 4))])
def test_every_vector_width_equals_the_reference(machine, average, inner, states, monkeypatch):
    monkeypatch.setenv("MAMBAR_LLVM_MACHINE", machine)
    ways = [draw(inner, state, 3, 4, seed) for seed, state in enumerate(states)]
    xz = torch.randn(2, 21, 2 * inner, generator=torch.Generator().manual_seed(9))
    weight = torch.randn(2, 21, inner, generator=torch.Generator().manual_seed(8))
    results = []
    for backend, dtype in (("llvm", torch.float32), ("reference", torch.float64)):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (xz, *ways[0], *ways[1])]
        out = bidirectional_mix(
            leaves[0], ScanDirection(*leaves[1:8]), ScanDirection(*leaves[8:]), average=average, backend=backend
        )
        results.append([out, *torch.autograd.grad(out, leaves, weight.to(dtype))])
    for found, right in zip(*results, strict=True):
        assert relative_error(found, right) <= 1e-5
    assert relative_error(results[0][0], results[1][0]) <= 1e-6


def test_saved_tensors_have_the_shapes_of_empty_saved():
    forward_params, backward_params = draw(24, 4, 3, 4, 0), draw(24, 6, 3, 4, 1)
    xz = torch.randn(2, 35, 48)
    _, saved = llvm.forward(xz, forward_params, backward_params, average=True, for_backward=True)
    promised = llvm.empty_saved(xz, forward_params, backward_params)
    assert [(t.shape, t.dtype) for t in saved] == [(t.shape, t.dtype) for t in promised]
    assert llvm.forward(xz, forward_params, backward_params, average=True, for_backward=False)[1] == []
