"""The Triton norm in Triton's interpreter, on a CPU, in a process of its own: this file as a program."""

import os
import subprocess
import sys

import pytest
import torch


@pytest.mark.slow
def test_interpreted_norm_equals_the_reference():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def check(rows: int, width: int, adds: bool) -> None:
    """Fails unless outputs and gradients are float64's to six digits."""
    from mambar.ops.rms_norm import triton

    torch.manual_seed(0)
    x, weight = torch.randn(rows, width), torch.randn(width)
    residual = torch.randn(rows, width) if adds else None
    normed, total, inverse = triton.forward(x, residual, weight, eps=1e-5, dtype=torch.float32)
    exact, scale = x.double().requires_grad_(), weight.double().requires_grad_()
    stream = exact if residual is None else exact + residual.double()
    wanted = stream * torch.rsqrt(stream.square().mean(-1, keepdim=True) + 1e-5) * scale
    dnormed, dtotal = torch.randn(rows, width), torch.randn(rows, width) if adds else None
    objective = (wanted * dnormed).sum() + (0 if dtotal is None else (stream * dtotal).sum())
    gradients = torch.autograd.grad(objective, [exact, scale])
    found = triton.backward(dnormed, dtotal, x if residual is None else total, weight, inverse, eps=1e-5)
    for one, other in zip((normed, *found), (wanted, *gradients), strict=True):
        error = ((one.double() - other).norm() / other.norm()).item()
        assert error <= 1e-6, (rows, width, error)


if __name__ == "__main__":
    for shape in ((5, 7, False), (5, 7, True), (70, 192, True)):
        check(*shape)
