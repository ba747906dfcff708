"""The LLVM kernel of both convolutions and SiLU: a task computes a block forward, then backward."""

from llvmlite import ir

from mambar.ops.bidirectional_mix.llvm_direction import direction_arguments, direction_tensors
from mambar.ops.causal_conv1d import llvm_forward as convolution
from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import strided
from mambar.ops.llvm.vectors import Vectors, int64

VECTORS_PER_BLOCK = convolution.VECTORS_PER_BLOCK

DIRECTION_ARGUMENTS = (*strided("x", "y"), "taps", "weight", "bias")
ARGUMENTS = ("num_tasks", "length", "inner", "streaming", *direction_arguments(DIRECTION_ARGUMENTS))
scratch_floats = convolution.scratch_floats


def build_ir(machine: Machine, dtype: str) -> ir.Module:
    """The LLVM IR of the kernel for a dtype of the activations."""
    function = TaskFunction("llvm_convolutions", machine, ARGUMENTS)

    def task(vectors: Vectors, item: ir.Value, _: ir.Value, channel: ir.Value) -> None:
        def convolve(direction: ir.Value) -> None:
            is_backward = function.builder.icmp_unsigned("==", direction, int64(1))
            tensors = direction_tensors(function, DIRECTION_ARGUMENTS, is_backward, item, channel, dtype)
            convolution.emit_convolution(convolution.Convolution(tensors, vectors, Scratch(function)), vectors.silu)

        function.loop(2, convolve)

    function.for_each_channel_block(VECTORS_PER_BLOCK, task)
    return function.module
