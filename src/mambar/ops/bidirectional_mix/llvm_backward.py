"""The LLVM kernel of the backward of both scans and the gate: a task processes one direction, then the other."""

from llvmlite import ir

from mambar.ops.bidirectional_mix.llvm_direction import direction_arguments, direction_tensors
from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import strided
from mambar.ops.llvm.vectors import Block, Vectors, int64
from mambar.ops.selective_scan import llvm_backward as scan_backward
from mambar.ops.selective_scan.llvm_scan_loop import ScanLoop

VECTORS_PER_BLOCK = scan_backward.VECTORS_PER_BLOCK

DIRECTION_ARGUMENTS = (
    *strided("u", "delta", "z", "B", "C", "dout", "du", "ddelta", "dz"),
    *("state", "A", "D", "delta_bias", "checkpoints", "parameter_parts", "sequence_parts"),
)
ARGUMENTS = (
    *("num_tasks", "length", "inner", "batch", "blocks_per_task", "delta_softplus", "average", "streaming"),
    *("dstate", "dinitial_state"),
    *direction_arguments(DIRECTION_ARGUMENTS),
)
scratch_floats = scan_backward.scratch_floats


def build_ir(machine: Machine, dtype: str) -> ir.Module:
    """The LLVM IR of the kernel for a dtype of the activations."""
    function = TaskFunction("llvm_backward", machine, ARGUMENTS)
    builder = function.builder

    def task(vectors: Vectors, item: ir.Value, block: ir.Value, channel: ir.Value) -> None:
        def scan_direction(direction: ir.Value) -> None:
            is_backward = builder.icmp_unsigned("==", direction, int64(1))
            tensors = direction_tensors(function, DIRECTION_ARGUMENTS, is_backward, item, channel, dtype)
            dout, z, dz = tensors.rows("dout"), tensors.rows("z"), tensors.rows("dz")
            half = vectors.select(function.is_set("average"), vectors.constant(0.5), vectors.constant(1.0))

            def load_gradient(step: ir.Value) -> tuple[Block, Block]:
                gradient = vectors.mul(vectors.load(dout.at(step), dtype), half)
                gate, derivative = vectors.silu_and_derivative(vectors.load(z.at(step), dtype))
                return vectors.mul(gradient, gate), vectors.mul(gradient, derivative)

            def store_gate_gradient(step: ir.Value, y: Block, factor: Block) -> None:
                # The forward direction stores its part of dz, the backward direction adds its own.
                zero = vectors.constant(0.0)
                before = function.choose(is_backward, lambda: vectors.load(dz.at(step), dtype), zero)
                vectors.store(vectors.fma(factor, y, before), dz.at(step), dtype)

            scan = ScanLoop(tensors, vectors, Scratch(function))
            scan_backward.BackwardScan(scan, block, load_gradient, store_gate_gradient, prefetched=[dout, z]).emit()

        function.loop(2, scan_direction)

    function.for_each_channel_block(VECTORS_PER_BLOCK, task)
    return function.module
