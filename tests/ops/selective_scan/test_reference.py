import math

import torch

from mambar.ops import selective_scan, selective_scan_with_state
from op_inputs import scan_inputs


def test_two_steps_equal_values_by_hand():
    u, delta = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[0.5], [1.0]]])
    A, B, C = torch.tensor([[-1.0]]), torch.tensor([[[3.0], [4.0]]]), torch.tensor([[[1.0], [0.5]]])
    y, state = selective_scan_with_state(u, delta, A, B, C, D=torch.tensor([10.0]), backend="reference")
    first = 0.5 * 3 * 1
    second = math.exp(-1) * first + 1 * 4 * 2
    torch.testing.assert_close(y.flatten(), torch.tensor([first + 10, 0.5 * second + 20]))
    torch.testing.assert_close(state.flatten(), torch.tensor([second]))


def test_softplus_is_the_identity_above_20_and_the_gate_is_silu():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    y = selective_scan(one, 30 * one, -one[0], one, one, z=2 * one, delta_softplus=True, backend="reference")
    torch.testing.assert_close(y, 30 * one * 2 / (1 + math.exp(-2)))


def test_second_derivatives():
    tensors = [tensor.requires_grad_() for tensor in scan_inputs(1, 3, 2, 2, dtype=torch.float64).values()]

    def scan(*tensors):
        return selective_scan_with_state(*tensors, delta_softplus=True, backend="reference")

    assert torch.autograd.gradcheck(scan, tensors)
    assert torch.autograd.gradgradcheck(scan, tensors)


def test_nan_and_infinite_steps_propagate():
    tensors = scan_inputs(1, 4, 2, 2, without=("z", "initial_state", "delta_bias"))
    for value in (float("nan"), float("inf")):
        tensors["delta"][0, 2, 1] = value
        y = selective_scan_with_state(**tensors, backend="reference")[0]
        assert not bool(y[0, 2, 1].isfinite()) and bool(y[0, :, 0].isfinite().all())
