"""Matrix products on CPUs: through oneDNN where the default library is slow.

On AMD processors the default (MKL) reaches less than half of what oneDNN does in float32; on Intel's they are equal.
The choice follows from the processor alone, never from a measurement, so that a run resumed elsewhere in time keeps its
bits. No global setting is touched: oneDNN is called through an operation of PyTorch that is not public, so it is
looked for and tried once, and the default is the fall-back. MAMBAR_CPU_MATMUL=default or onednn overrides the choice.
"""

import functools
import os

import torch
from torch import Tensor

from mambar.errors import InputError
from mambar.ops.llvm.machine import host_machine


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, without a graph for gradients."""
    if a.dtype == torch.float32 and _onednn_chosen():
        # A transposed left side sends oneDNN to its reference code, a thousand times slower.
        return _onednn(a if a.stride(-1) == 1 else a.contiguous(), b)
    return a @ b


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., inputs) times the transpose of weight (outputs, inputs)."""
    rows = x.reshape(-1, x.shape[-1])
    return matmul(rows, weight.t()).view(*x.shape[:-1], weight.shape[0])


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


@functools.cache
def _onednn_chosen() -> bool:
    choice = os.environ.get("MAMBAR_CPU_MATMUL", "auto")
    if choice not in ("auto", "default", "onednn"):
        raise InputError(f"MAMBAR_CPU_MATMUL={choice!r} is not known; use auto, default or onednn.")
    wanted = choice == "onednn" or (choice == "auto" and host_machine().cpu.startswith("znver"))
    return wanted and _onednn_works()


def _onednn_works() -> bool:
    """Whether the operation is there and gives the right product."""
    a, b = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(4, 5)
    try:
        return torch.equal(_onednn(a, b), a @ b)
    except (AttributeError, RuntimeError, TypeError):
        return False
