"""The gradients of the mix's scans and gate: a task walks a block back in one direction, then in the other."""

from llvmlite import ir

from mambar.ops.bidirectional_mix.llvm_forward import direction_place
from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.vectors import Block, Vectors, int64
from mambar.ops.selective_scan import llvm_backward as scan
from mambar.ops.selective_scan.llvm_scan_loop import Walk

VECTORS_PER_BLOCK = scan.VECTORS_PER_BLOCK

OWN = (
    *("u", "u_batch", "u_time", "delta", "delta_batch", "delta_time", "z", "z_batch", "z_time"),
    *("B", "B_batch", "B_time", "C", "C_batch", "C_time", "dout", "dout_batch", "dout_time"),
    *("du", "du_batch", "du_time", "ddelta", "ddelta_batch", "ddelta_time", "dz", "dz_batch", "dz_time"),
    *("state", "A", "D", "delta_bias", "checkpoints", "parameter_parts", "sequence_parts"),
)
ARGUMENTS = (
    *("num_tasks", "length", "inner", "batch", "blocks_per_task", "delta_softplus", "average", "streaming"),
    *("dstate", "dinitial_state"),
    *(f"{direction}_{name}" for direction in ("ahead", "behind") for name in OWN),
)
scratch_floats = scan.scratch_floats


def write(machine: Machine, dtype: str) -> ir.Module:
    """The module with the kernel, for activations of one dtype."""
    function = TaskFunction("llvm_backward", machine, ARGUMENTS)
    builder = function.builder

    def task(vectors: Vectors, item: ir.Value, block: ir.Value, channel: ir.Value) -> None:
        def walk(direction: ir.Value) -> None:
            behind = builder.icmp_unsigned("==", direction, int64(1))
            place = direction_place(function, OWN, behind, item, channel, dtype)
            dout, z, dz = place.rows("dout"), place.rows("z"), place.rows("dz")
            half = vectors.select(function.flag("average"), vectors.constant(0.5), vectors.constant(1.0))

            def receive(step: ir.Value) -> tuple[Block, Block]:
                gradient = vectors.mul(vectors.load(dout.at(step), dtype), half)
                gate, slope = vectors.silu_and_slope(vectors.load(z.at(step), dtype))
                return vectors.mul(gradient, gate), vectors.mul(gradient, slope)

            def pass_on(step: ir.Value, y: Block, factor: Block) -> None:
                # The walk ahead writes its part of dz, the walk behind adds its own.
                zero = vectors.constant(0.0)
                before = function.choose(behind, lambda: vectors.load(dz.at(step), dtype), zero)
                vectors.store(vectors.fma(factor, y, before), dz.at(step), dtype)

            walk = Walk(place, vectors, Scratch(function))
            scan.BackwardWalk(walk, block, receive, pass_on, prefetched=[dout, z]).write()

        function.loop(2, walk)

    function.channel_tasks(VECTORS_PER_BLOCK, task)
    return function.module
