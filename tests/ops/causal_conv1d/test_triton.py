"""The Triton convolution in Triton's interpreter, on a CPU, in a process of its own: this file as a program."""

import os
import subprocess
import sys

import pytest
import torch

CASES = [
    (2, 9, 5, 4, False, True, True),
    (1, 37, 130, 4, True, True, True),
    (2, 5, 3, 1, False, True, False),
    (1, 2, 3, 3, True, False, True),
]


@pytest.mark.slow
def test_interpreted_convolution_equals_the_reference():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def check(batch: int, length: int, inner: int, taps: int, reverse: bool, silu: bool, biased: bool) -> None:
    """Fails unless output and gradients are the reference's to seven digits."""
    from mambar.ops.causal_conv1d import reference, triton

    torch.manual_seed(0)
    tensors = [torch.randn(batch, length, 2 * inner)[..., inner:], torch.randn(inner, taps)]
    tensors.append(torch.randn(inner) if biased else None)
    exact = [None if tensor is None else tensor.double().requires_grad_() for tensor in tensors]
    wanted = reference.causal_conv1d(*exact, silu=silu, reverse=reverse)
    y = triton.forward(*tensors, silu=silu, reverse=reverse)
    dy = torch.randn_like(y)
    gradients = torch.autograd.grad((wanted * dy).sum(), [tensor for tensor in exact if tensor is not None])
    found = [part for part in triton.backward(dy, *tensors, silu=silu, reverse=reverse) if part is not None]
    for one, other in zip((y, *found), (wanted, *gradients), strict=True):
        error = ((one.double() - other).norm() / other.norm()).item()
        assert error <= 1e-6, (batch, length, inner, error)


if __name__ == "__main__":
    for case in CASES:
        check(*case)
