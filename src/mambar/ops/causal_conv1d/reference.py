"""The causal depthwise convolution as a sum of shifted sequences, one multiply-add for each filter column."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mambar.ops.checks import as_dtype


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool) -> Tensor:
    """The convolution in the type of `x`, summed in the type of `weight`; see the interface."""
    length, d_conv = x.shape[1], weight.shape[1]
    past = (0, d_conv - 1) if reverse else (d_conv - 1, 0)
    padded = F.pad(as_dtype(x, weight.dtype), (0, 0, *past))  # (batch, length + d_conv - 1, d_inner)
    columns = weight.flip(1).unbind(1) if reverse else weight.unbind(1)
    y = padded[:, :length] * columns[0]
    if bias is not None:
        y = y + bias
    for shift in range(1, d_conv):
        y = torch.addcmul(y, padded[:, shift : shift + length], columns[shift])
    return as_dtype(F.silu(y) if silu else y, x.dtype)
