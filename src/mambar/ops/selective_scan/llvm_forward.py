"""The LLVM kernel of the forward scan: one task scans one block of channels of one batch item.

Channels are vector lanes, and the states of the block stay in the first-level cache. No tensor of size (batch, length,
d_inner, d_state) is allocated.
"""

from collections.abc import Callable, Sequence

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import Rows, TaskTensors, Tile, strided
from mambar.ops.llvm.vectors import Block, Vectors, int64
from mambar.ops.selective_scan.llvm_scan_loop import CHECKPOINT_EVERY, ScanLoop

VECTORS_PER_BLOCK = 4
PREFETCH_ROWS = 4

# The address of a tensor that is not given is 0.
ARGUMENTS = (
    *("num_tasks", "length", "inner", "state", "delta_softplus", "streaming"),
    *strided("u", "delta", "z", "B", "C", "y"),
    *("A", "D", "delta_bias", "initial_state", "last_state", "checkpoints"),
)


def scratch_floats(machine: Machine, state: int) -> int:
    """Size of the scratch memory of one thread: A and the states of a block, D and the bias."""
    return 2 * (state + 1) * VECTORS_PER_BLOCK * machine.lanes


def build_ir(machine: Machine, dtype: str) -> ir.Module:
    """The LLVM IR of the kernel for a dtype of the activations."""
    function = TaskFunction("llvm_forward", machine, ARGUMENTS)

    def task(vectors: Vectors, item: ir.Value, _: ir.Value, channel: ir.Value) -> None:
        tensors = TaskTensors(function=function, argument=function.integer, item=item, channel=channel, dtype=dtype)
        scan = ScanLoop(tensors, vectors, Scratch(function))
        y, z = tensors.rows("y"), tensors.rows("z")

        def finish(values: Block, step: ir.Value) -> None:
            with tensors.builder.if_else(tensors.is_set("z")) as (gated, plain):
                with gated:
                    gate = vectors.silu(vectors.load(z.at(step), dtype))
                    tensors.store(vectors, vectors.mul(values, gate), y.at(step), dtype)
                with plain:
                    tensors.store(vectors, values, y.at(step), dtype)

        emit_forward_scan(scan, finish, prefetched=[z])

    function.for_each_channel_block(VECTORS_PER_BLOCK, task)
    return function.module


def emit_forward_scan(
    scan: ScanLoop, finish: Callable[[Block, ir.Value], None], *, prefetched: Sequence[Rows] = ()
) -> None:
    """Emits a scan from the initial to the last state, with finish(C h + D u, step) at every step."""
    tensors, builder, vectors = scan.tensors, scan.builder, scan.vectors
    h = scan.tile()
    scan.read_states("initial_state", h)

    def step(index: ir.Value) -> None:
        is_checkpoint = builder.icmp_unsigned("==", builder.urem(index, int64(CHECKPOINT_EVERY)), int64(0))
        with builder.if_then(builder.and_(tensors.is_set("checkpoints"), is_checkpoint)):
            saved = scan.checkpoint(index)
            scan.function.loop(scan.state, lambda n: tensors.store(vectors, h.load(n), saved.at(n)))
        next_row = builder.add(index, int64(PREFETCH_ROWS))
        for rows in (scan.u, scan.delta, *prefetched):
            vectors.prefetch(rows.at(next_row), rows.dtype)
        finish(_step(scan, h, index), index)

    scan.function.loop(scan.length, step)
    scan.write_states("last_state", h)


def _step(scan: ScanLoop, h: Tile, step: ir.Value) -> Block:
    """Updates all states in place, h = exp(dt A) h + dt u B, and returns C h + D u."""
    vectors = scan.vectors
    u = vectors.load(scan.u.at(step), scan.u.dtype)
    dt = scan.step_size(step)
    dt_u = vectors.mul(dt, u)
    B, C = scan.B.at(step), scan.C.at(step)

    def state(number: ir.Value, y: Block) -> tuple[Block]:
        decay = vectors.exp2(dt, scan.A.load(number))
        new = vectors.fma(decay, h.load(number), vectors.mul(dt_u, vectors.broadcast_load(B, number)))
        h.store(new, number)
        return (vectors.fma(new, vectors.broadcast_load(C, number), y),)

    return scan.function.loop(scan.state, state, vectors.mul(u, scan.D.load()))[0]
