"""Both scans of the mix, its gate and its sum in one pass: a task walks a block ahead, then behind.

What the first walk gives stays in scratch until the second adds its own and writes the gated result.
"""

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import Place, Rows
from mambar.ops.llvm.vectors import Block, Vectors, int64
from mambar.ops.selective_scan import llvm_forward as scan
from mambar.ops.selective_scan.llvm_scan_loop import Walk

VECTORS_PER_BLOCK = scan.VECTORS_PER_BLOCK

# What each direction has of its own, in the order of its walk; the gate and the result are the same tensors for both.
OWN = (
    *("u", "u_batch", "u_time", "delta", "delta_batch", "delta_time", "z", "z_batch", "z_time"),
    *("B", "B_batch", "B_time", "C", "C_batch", "C_time", "out", "out_batch", "out_time"),
    *("state", "A", "D", "delta_bias", "checkpoints"),
)
ARGUMENTS = (
    *("num_tasks", "length", "inner", "delta_softplus", "average", "streaming"),
    *("initial_state", "last_state"),
    *(f"{direction}_{name}" for direction in ("ahead", "behind") for name in OWN),
)


def scratch_floats(machine: Machine, state: int, length: int) -> int:
    """The scratch of one thread: that of a scan, and the outputs of the first walk."""
    return scan.scratch_floats(machine, state) + length * VECTORS_PER_BLOCK * machine.lanes


def direction_place(
    function: TaskFunction, own: tuple[str, ...], behind: ir.Value, item: ir.Value, channel: ir.Value, dtype: str
) -> Place:
    """A place that reads a direction's own arguments by their common names."""

    def read(name: str) -> ir.Value:
        if name not in own:
            return function.integer(name)
        return function.builder.select(behind, function.integer(f"behind_{name}"), function.integer(f"ahead_{name}"))

    return Place(function=function, read=read, item=item, channel=channel, dtype=dtype)


def write(machine: Machine, dtype: str) -> ir.Module:
    """The module with the kernel, for activations of one dtype."""
    function = TaskFunction("llvm_forward", machine, ARGUMENTS)
    builder = function.builder

    def task(vectors: Vectors, item: ir.Value, _: ir.Value, channel: ir.Value) -> None:
        length = function.integer("length")
        final = builder.sub(length, int64(1))

        def walk(direction: ir.Value) -> None:
            behind = builder.icmp_unsigned("==", direction, int64(1))
            place = direction_place(function, OWN, behind, item, channel, dtype)
            scratch = Scratch(function)
            first = scratch.take(builder.mul(length, int64(vectors.width)))
            kept = Rows(builder=builder, first=first, stride=int64(vectors.width))
            z, out = place.rows("z"), place.rows("out")
            half = vectors.select(function.flag("average"), vectors.constant(0.5), vectors.constant(1.0))

            def finish(values: Block, step: ir.Value) -> None:
                with builder.if_else(behind) as (second, start):
                    with second:
                        both = vectors.mul(vectors.add(values, vectors.load_tile(kept.at(step))), half)
                        gate = vectors.silu(vectors.load(z.at(step), dtype))
                        place.store(vectors, vectors.mul(both, gate), out.at(step), dtype)
                    with start:
                        vectors.store_tile(values, kept.at(builder.sub(final, step)))

            scan.walk_forward(Walk(place, vectors, scratch), finish, prefetched=[z])

        function.loop(2, walk)

    function.channel_tasks(VECTORS_PER_BLOCK, task)
    return function.module
