"""The RMS norm on CPUs as one LLVM kernel where no gradient is needed; elsewhere by the reference.

The reference is eight small operators, most of whose time is for memory that is no longer in a cache. It is used with
gradients, for other types than float32, and where something follows the operators.
"""

import torch
from torch import Tensor

from mambar.ops.rms_norm import reference

_PLAIN = (Tensor, torch.nn.Parameter)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, dtype: torch.dtype) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, given in `dtype`."""
    if dtype != torch.float32 or _needs_operators(x, weight):
        return reference.rms_norm(x, weight, eps=eps, dtype=dtype)
    from mambar.ops.rms_norm import llvm

    return llvm.normalize(x, None, weight, eps=eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual in the type of x, and the sum."""
    if _needs_operators(x, residual, weight):
        total = x + residual
        return reference.rms_norm(total, weight, eps=eps, dtype=x.dtype), total
    from mambar.ops.rms_norm import llvm

    return llvm.normalize(x, residual, weight, eps=eps)


def _needs_operators(*tensors: Tensor) -> bool:
    return (
        torch._C._len_torch_dispatch_stack() > 0  # type: ignore[attr-defined]
        or any(tensor.dtype != torch.float32 or type(tensor) not in _PLAIN for tensor in tensors)
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )
