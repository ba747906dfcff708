"""RMS normalisation in plain PyTorch."""

import torch
from torch import Tensor

from mambar.ops.checks import as_dtype


def rms_norm(total: Tensor, weight: Tensor, *, eps: float, dtype: torch.dtype) -> Tensor:
    """`total / sqrt(mean(total²) + eps) * weight` over the last dimension, given in `dtype`."""
    wide = as_dtype(total, weight.dtype)
    inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return as_dtype(wide * inverse_rms * weight, dtype)
