"""Matrix products on CPUs, with oneDNN where the default library is slow.

On AMD processors the default (MKL) reaches less than half of the float32 speed of oneDNN; on Intel they are equal.
The choice depends only on the processor, never on a measurement, so that a resumed run stays bit-exact. No global
setting changes. oneDNN is called through a private PyTorch operator, which is tested once; without it the default is
used. MAMBAR_CPU_MATMUL=default or onednn overrides the choice.
"""

import functools
import os

import torch
from torch import Tensor
from torch.nn import functional

from mambar.errors import InputError
from mambar.ops.llvm.machine import host_machine


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, without autograd."""
    if a.dtype == torch.float32 and _uses_onednn():
        # With a transposed left matrix oneDNN uses its reference code, a thousand times slower.
        return _onednn(a if a.stride(-1) == 1 else a.contiguous(), b)
    return a @ b


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., in_features) times the transpose of weight (out_features, in_features)."""
    if x.dtype != torch.float32 or not _uses_onednn():
        return functional.linear(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    return matmul(rows, weight.t()).view(*x.shape[:-1], weight.shape[0])


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


@functools.cache
def _uses_onednn() -> bool:
    choice = os.environ.get("MAMBAR_CPU_MATMUL", "auto")
    if choice not in ("auto", "default", "onednn"):
        raise InputError(f"MAMBAR_CPU_MATMUL={choice!r} is not a known choice; use auto, default or onednn.")
    wanted = choice == "onednn" or (choice == "auto" and host_machine().cpu.startswith("znver"))
    return wanted and _onednn_works()


def _onednn_works() -> bool:
    """True if the operator exists and gives the right product."""
    a, b = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(4, 5)
    try:
        return torch.equal(_onednn(a, b), a @ b)
    except (AttributeError, RuntimeError, TypeError):
        return False
