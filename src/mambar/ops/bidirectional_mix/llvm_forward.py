"""The LLVM kernel of both scans, the gate and the sum: a task scans a block forward, then backward.

The output of the forward direction stays in scratch until the backward direction adds its own and stores the result.
"""

from llvmlite import ir

from mambar.ops.bidirectional_mix.llvm_direction import direction_arguments, direction_tensors
from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import Rows, strided
from mambar.ops.llvm.vectors import Block, Vectors, int64
from mambar.ops.selective_scan import llvm_forward as scan_forward
from mambar.ops.selective_scan.llvm_scan_loop import ScanLoop

VECTORS_PER_BLOCK = scan_forward.VECTORS_PER_BLOCK

# Arguments of each direction, in its scan order; the gate and the result are the same tensors for both. See `ScanLoop`
# for rank and dt_proj.
DIRECTION_ARGUMENTS = (
    *strided("u", "delta", "z", "B", "C", "out"),
    *("state", "A", "D", "delta_bias", "checkpoints", "rank", "dt_proj"),
)
ARGUMENTS = (
    *("num_tasks", "length", "inner", "delta_softplus", "average", "A_is_log", "streaming"),
    *("initial_state", "last_state"),
    *direction_arguments(DIRECTION_ARGUMENTS),
)


def scratch_floats(machine: Machine, state: int, length: int, rank: int) -> int:
    """Size of the scratch memory of one thread: that of a scan, dt_proj, and the outputs of the first direction."""
    return scan_forward.scratch_floats(machine, state) + (rank + length) * VECTORS_PER_BLOCK * machine.lanes


def build_ir(machine: Machine, dtype: str) -> ir.Module:
    """The LLVM IR of the kernel for a dtype of the activations."""
    function = TaskFunction("llvm_forward", machine, ARGUMENTS)
    builder = function.builder

    def task(vectors: Vectors, item: ir.Value, _: ir.Value, channel: ir.Value) -> None:
        length = function.integer("length")
        final = builder.sub(length, int64(1))

        def scan_direction(direction: ir.Value) -> None:
            is_backward = builder.icmp_unsigned("==", direction, int64(1))
            tensors = direction_tensors(function, DIRECTION_ARGUMENTS, is_backward, item, channel, dtype)
            scratch = Scratch(function)
            first = scratch.allocate(builder.mul(length, int64(vectors.width)))
            first_output = Rows(builder=builder, first=first, stride=int64(vectors.width))
            z, out = tensors.rows("z"), tensors.rows("out")
            half = vectors.select(function.is_set("average"), vectors.constant(0.5), vectors.constant(1.0))

            def finish(values: Block, step: ir.Value) -> None:
                with builder.if_else(is_backward) as (second, start):
                    with second:
                        both = vectors.mul(vectors.add(values, vectors.load_tile(first_output.at(step))), half)
                        gate = vectors.silu(vectors.load(z.at(step), dtype))
                        tensors.store(vectors, vectors.mul(both, gate), out.at(step), dtype)
                    with start:
                        vectors.store_tile(values, first_output.at(builder.sub(final, step)))

            A_is_log, rank = function.is_set("A_is_log"), tensors.argument("rank")
            scan = ScanLoop(tensors, vectors, scratch, A_is_log=A_is_log, rank=rank)
            scan_forward.emit_forward_scan(scan, finish, prefetched=[z])

        function.loop(2, scan_direction)

    function.for_each_channel_block(VECTORS_PER_BLOCK, task)
    return function.module
