"""The forward scan as vector instructions: one task walks one batch item's block of channels through time.

Lanes are channels, the states of the block stay in the first-level cache, and all steps of all states are
computed there: nothing of size (batch, length, inner, state) exists.
"""

from collections.abc import Callable, Sequence

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import Place, Rows, Tile
from mambar.ops.llvm.vectors import Block, Vectors, int64
from mambar.ops.selective_scan.llvm_scan_loop import CHECKPOINT_EVERY, Walk

VECTORS_PER_BLOCK = 4
ROWS_AHEAD = 4

# Addresses are 0 where a tensor is not given; strides count elements. A walk's first row is the last in
# memory, and its strides over time are negative, where the walk goes backwards.
ARGUMENTS = (
    *("num_tasks", "length", "inner", "state", "delta_softplus", "streaming"),
    *("u", "u_batch", "u_time", "delta", "delta_batch", "delta_time", "z", "z_batch", "z_time"),
    *("B", "B_batch", "B_time", "C", "C_batch", "C_time", "y", "y_batch", "y_time"),
    *("A", "D", "delta_bias", "initial_state", "last_state", "checkpoints"),
)


def scratch_floats(machine: Machine, state: int) -> int:
    """The scratch of one thread: A and the states of a block, D and the bias."""
    return 2 * (state + 1) * VECTORS_PER_BLOCK * machine.lanes


def write(machine: Machine, dtype: str) -> ir.Module:
    """The module with the kernel, for activations of one dtype."""
    function = TaskFunction("llvm_forward", machine, ARGUMENTS)

    def task(vectors: Vectors, item: ir.Value, _: ir.Value, channel: ir.Value) -> None:
        place = Place(function=function, read=function.integer, item=item, channel=channel, dtype=dtype)
        walk = Walk(place, vectors, Scratch(function))
        y, z = place.rows("y"), place.rows("z")

        def finish(values: Block, step: ir.Value) -> None:
            with place.builder.if_else(place.given("z")) as (gated, plain):
                with gated:
                    gate = vectors.silu(vectors.load(z.at(step), dtype))
                    place.store(vectors, vectors.mul(values, gate), y.at(step), dtype)
                with plain:
                    place.store(vectors, values, y.at(step), dtype)

        walk_forward(walk, finish, prefetched=[z])

    function.channel_tasks(VECTORS_PER_BLOCK, task)
    return function.module


def walk_forward(walk: Walk, finish: Callable[[Block, ir.Value], None], *, prefetched: Sequence[Rows] = ()) -> None:
    """Writes a walk: from the initial to the last state, calling finish(C h + D u, step) at every step."""
    place, builder, vectors = walk.place, walk.builder, walk.vectors
    h = walk.tile()
    walk.read_states("initial_state", h)

    def step(index: ir.Value) -> None:
        due = builder.icmp_unsigned("==", builder.urem(index, int64(CHECKPOINT_EVERY)), int64(0))
        with builder.if_then(builder.and_(place.given("checkpoints"), due)):
            kept = walk.checkpoint(index)
            walk.function.loop(walk.state, lambda n: place.store(vectors, h.load(n), kept.at(n)))
        ahead = builder.add(index, int64(ROWS_AHEAD))
        for rows in (walk.u, walk.delta, *prefetched):
            vectors.prefetch(rows.at(ahead), rows.dtype)
        finish(_step(walk, h, index), index)

    walk.function.loop(walk.length, step)
    walk.write_states("last_state", h)


def _step(walk: Walk, h: Tile, step: ir.Value) -> Block:
    """One step of all states: h = exp(dt A) h + dt u B, in place; returns C h + D u."""
    vectors = walk.vectors
    u = vectors.load(walk.u.at(step), walk.u.dtype)
    dt = walk.step_size(step)
    pushed = vectors.mul(dt, u)
    B, C = walk.B.at(step), walk.C.at(step)

    def state(number: ir.Value, y: Block) -> tuple[Block]:
        decay = vectors.exp2(dt, walk.A.load(number))
        new = vectors.fma(decay, h.load(number), vectors.mul(pushed, vectors.broadcast_load(B, number)))
        h.store(new, number)
        return (vectors.fma(new, vectors.broadcast_load(C, number), y),)

    return walk.function.loop(walk.state, state, vectors.mul(u, walk.D.load()))[0]
