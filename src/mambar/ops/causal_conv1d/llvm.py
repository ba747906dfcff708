"""The convolution on a CPU through LLVM: lanes are channels, SiLU fused in."""

import torch
from torch import Tensor

from mambar.ops.causal_conv1d import llvm_backward, llvm_forward
from mambar.ops.llvm.functions import channel_blocks
from mambar.ops.llvm.launch import address, launch, rows, streams, sum_parts
from mambar.ops.llvm.machine import current_machine


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool) -> Tensor:
    """The convolution, and its SiLU where asked."""
    machine = current_machine()
    batch, length, inner = x.shape
    taps = weight.shape[1]
    y = torch.empty(x.shape, dtype=x.dtype)
    launch(
        llvm_forward,
        x.dtype,
        arguments={
            "num_tasks": batch * channel_blocks(machine, inner, llvm_forward.VECTORS_PER_BLOCK),
            "length": length,
            "inner": inner,
            "taps": taps,
            "silu": silu,
            "streaming": streams(machine, y),
            **rows(reverse, x=x, y=y),
            "weight": address(weight),
            "bias": address(bias),
        },
        scratch_floats=llvm_forward.scratch_floats(machine, taps),
    )
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, the weight, and the bias (None where there is none)."""
    machine = current_machine()
    batch, length, inner = x.shape
    taps = weight.shape[1]
    dx = torch.empty(x.shape, dtype=x.dtype)
    parts = torch.empty(batch, taps + 1, inner, dtype=torch.float32)
    launch(
        llvm_backward,
        x.dtype,
        arguments={
            "num_tasks": batch * channel_blocks(machine, inner, llvm_backward.VECTORS_PER_BLOCK),
            "length": length,
            "inner": inner,
            "taps": taps,
            "silu": silu,
            "streaming": streams(machine, dx),
            **rows(reverse, x=x, dy=dy, dx=dx),
            "weight": address(weight),
            "bias": address(bias),
            "parts": address(parts),
        },
        scratch_floats=llvm_backward.scratch_floats(machine, taps),
    )
    sums = sum_parts(parts)
    return dx, sums[:taps].t().contiguous(), None if bias is None else sums[taps].clone()
