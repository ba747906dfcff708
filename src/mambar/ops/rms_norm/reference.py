"""RMS normalisation in plain PyTorch."""

import torch
from torch import Tensor


def rms_norm(total: Tensor, weight: Tensor, *, eps: float, dtype: torch.dtype) -> Tensor:
    """`total / sqrt(mean(total²) + eps) * weight` over the last dimension, given in `dtype`."""
    wide = total.to(weight.dtype)
    inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse_rms * weight).to(dtype)
