"""The causal convolution in CUDA C++, compiled at the first use; a sliding window of inputs stays in registers."""

import torch
from torch import Tensor

from mambar.ops.cuda.conv import conv_backward, conv_forward


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool) -> Tensor:
    """The convolution, followed by SiLU if `silu`."""
    return conv_forward(x, ((weight, bias),), silu=silu, reverse=reverse)[0]


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    ((dweight, dbias),) = conv_backward(dy, x, dx, ((weight, bias),), silu=silu, reverse=reverse)
    return dx, dweight, None if bias is None else dbias
