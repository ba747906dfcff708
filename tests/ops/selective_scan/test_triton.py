"""The Triton scan in Triton's interpreter, on a CPU: arithmetic and indexing, not races.

The interpreter is chosen when a kernel is decorated, so it runs in a process of its own: this file as a program.
"""

import os
import subprocess
import sys

import pytest
import torch

SHAPES = [
    (2, 7, 5, 3, False, True),
    (1, 19, 34, 16, True, True),
    (2, 33, 3, 5, False, False),
    (1, 17, 3, 20, True, True),
]


@pytest.mark.slow
def test_interpreted_scan_equals_the_reference():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def check(batch: int, length: int, inner: int, state: int, reverse: bool, with_optional: bool) -> None:
    """Fails unless outputs and gradients are the reference's to seven digits."""
    from mambar.ops.selective_scan import reference, triton

    torch.manual_seed(0)
    wide, rows = torch.randn(batch, length, 2 * inner), torch.randn(batch, length, 3 + 2 * state)
    optional = torch.randn(inner), wide[..., inner:], torch.randn(inner), torch.randn(batch, inner, state)
    D, z, bias, initial = optional if with_optional else (None,) * 4
    delta, A = torch.randn(batch, length, inner) - 1, -4 * torch.rand(inner, state)
    tensors = (wide[..., :inner], delta, A, rows[..., 3 : 3 + state], rows[..., 3 + state :], D, z, bias, initial)
    options = {"delta_softplus": True, "reverse": reverse}
    exact = [None if tensor is None else tensor.double().requires_grad_() for tensor in tensors]
    wanted, last = reference.selective_scan(*exact, **options)
    y, state_found, saved = triton.forward(*tensors, **options, for_backward=True)
    dy, dstate = torch.randn_like(y), torch.randn_like(state_found)
    leaves = [tensor for tensor in exact if tensor is not None]
    gradients = torch.autograd.grad((wanted * dy).sum() + (last * dstate).sum(), leaves)
    found = [part for part in triton.backward(dy, dstate, *tensors, saved, **options) if part is not None]
    for one, other in zip((y, state_found, *found), (wanted, last, *gradients), strict=True):
        error = ((one.double() - other).norm() / other.norm()).item()
        assert error <= 1e-6, (batch, length, inner, error)


if __name__ == "__main__":
    for shape in SHAPES:
        check(*shape)
