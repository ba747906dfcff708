"""The causal convolution on CPUs as LLVM kernels: channels in vector lanes, SiLU fused."""

import torch
from torch import Tensor

from mambar.ops.causal_conv1d import llvm_backward, llvm_forward
from mambar.ops.llvm.functions import num_channel_blocks
from mambar.ops.llvm.launch import addresses, launch, should_stream, strided_arguments, sum_parts
from mambar.ops.llvm.machine import Machine, current_machine


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool) -> Tensor:
    """The convolution, followed by SiLU if `silu`."""
    machine = current_machine()
    y = torch.empty(x.shape, dtype=x.dtype)
    launch(
        machine,
        llvm_forward,
        x.dtype,
        arguments={
            **_sizes(machine, x, weight, bias, llvm_forward.VECTORS_PER_BLOCK),
            "silu": silu,
            "streaming": should_stream(machine, y),
            **strided_arguments(reverse, x=x, y=y),
        },
        scratch_floats=llvm_forward.scratch_floats(machine, weight.shape[1]),
    )
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, weight and bias; None without bias."""
    dx = torch.empty(x.shape, dtype=x.dtype)
    dweight, dbias = backward_into(dx, dy, x, weight, bias, silu=silu, reverse=reverse)
    return dx, dweight, dbias


def backward_into(
    dx: Tensor,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    silu: bool,
    reverse: bool,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Stores the gradient of x to dx, or adds it if `accumulate`; returns those of weight and bias."""
    machine = current_machine()
    taps = weight.shape[1]
    parts = torch.empty(x.shape[0], taps + 1, x.shape[2], dtype=torch.float32)
    launch(
        machine,
        llvm_backward,
        x.dtype,
        arguments={
            **_sizes(machine, x, weight, bias, llvm_backward.VECTORS_PER_BLOCK),
            "silu": silu,
            "accumulate": accumulate,
            "streaming": should_stream(machine, dx),
            **strided_arguments(reverse, x=x, dy=dy, dx=dx),
            **addresses(parts=parts),
        },
        scratch_floats=llvm_backward.scratch_floats(machine, taps),
    )
    sums = sum_parts(parts)
    return sums[:taps].t().clone(memory_format=torch.contiguous_format), None if bias is None else sums[taps].clone()


def _sizes(machine: Machine, x: Tensor, weight: Tensor, bias: Tensor | None, vectors_per_block: int) -> dict[str, int]:
    batch, length, inner = x.shape
    return {
        "num_tasks": batch * num_channel_blocks(machine, inner, vectors_per_block),
        "length": length,
        "inner": inner,
        "taps": weight.shape[1],
        **addresses(weight=weight, bias=bias),
    }
