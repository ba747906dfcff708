"""The causal depthwise convolution as a sum over its taps: one fused multiply-add of the sequence a tap."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mambar.ops.checks import as_dtype


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool) -> Tensor:
    """The convolution in the type of `x`, summed in that of `weight`; the last tap meets the present."""
    length, taps = x.shape[1], weight.shape[1]
    past = (0, taps - 1) if reverse else (taps - 1, 0)
    padded = F.pad(as_dtype(x, weight.dtype), (0, 0, *past))  # (batch, length + taps - 1, inner)
    columns = weight.flip(1).unbind(1) if reverse else weight.unbind(1)
    y = padded[:, :length] * columns[0]
    if bias is not None:
        y = y + bias
    for tap in range(1, taps):
        y = torch.addcmul(y, padded[:, tap : tap + length], columns[tap])
    return as_dtype(F.silu(y) if silu else y, x.dtype)
