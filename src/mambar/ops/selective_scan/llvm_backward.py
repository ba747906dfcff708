"""The gradients of the scan as vector instructions: chunk by chunk from the last one to the first.

A chunk of 16 steps starts from the states that the forward walk kept. For one state at a time it is walked forwards
(decays and states go to a small buffer) and backwards (the adjoint of the state). With G the gradient of h[t]:
G = g + C dy, then g = exp(dt A) G for the step before, dA += g h[t-1] dt, and so on. Sums over states stay in the
block; sums over the batch and over blocks of channels are written as parts and added later, in a fixed order.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction, channel_blocks
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import Place, Rows
from mambar.ops.llvm.vectors import Block, Vectors, element, int64
from mambar.ops.selective_scan.llvm_scan_loop import CHECKPOINT_EVERY, Walk, padded_length

VECTORS_PER_BLOCK = 2
STATES_AT_ONCE = 2
LN_2 = math.log(2.0)

# As for the forward kernel; `parameter_parts` is (batch, state + 2, inner): the rows of dA, then dD and ddelta_bias;
# `sequence_parts` is (tasks of an item, batch, 2, state, chunks * 16): dB and dC in the order of the walk, where the
# blocks of one task add up.
ARGUMENTS = (
    *("num_tasks", "length", "inner", "state", "batch", "blocks_per_task", "delta_softplus", "streaming"),
    *("u", "u_batch", "u_time", "delta", "delta_batch", "delta_time", "z", "z_batch", "z_time"),
    *("B", "B_batch", "B_time", "C", "C_batch", "C_time", "dy", "dy_batch", "dy_time"),
    *("du", "du_batch", "du_time", "ddelta", "ddelta_batch", "ddelta_time", "dz", "dz_batch", "dz_time"),
    *("A", "D", "delta_bias", "checkpoints", "dstate", "dinitial_state", "parameter_parts", "sequence_parts"),
)


# What is kept of each step of a chunk, side by side: buffers of a whole chunk would lie whole pages apart, where they
# push each other out of the cache.
STEP_FIELDS = (
    *("dt", "slope", "pushed", "dy", "factor", "y", "ddecay", "dpushed"),
    *(f"{name}_{slot}" for slot in range(STATES_AT_ONCE) for name in ("decay", "before")),
)


def scratch_floats(machine: Machine, state: int) -> int:
    """The scratch of one thread: tiles of A, g and dA, D, bias and their gradients, a chunk, sums over lanes."""
    rows = 3 * state + 4 + len(STEP_FIELDS) * CHECKPOINT_EVERY
    return (rows * VECTORS_PER_BLOCK + 2 * STATES_AT_ONCE * CHECKPOINT_EVERY) * machine.lanes


def blocks_per_task(machine: Machine, batch: int, inner: int) -> tuple[int, int]:
    """How many blocks a task does, and how many tasks a batch item makes: from the sizes alone, never from threads.

    Blocks of one task share their sums over channels, so that these are not written and read by the block where
    there are many; 64 tasks are enough for as many cores.
    """
    blocks = channel_blocks(machine, inner, VECTORS_PER_BLOCK)
    size = min(blocks, max(1, blocks * batch // 64))
    return size, -(-blocks // size)


def write(machine: Machine, dtype: str) -> ir.Module:
    """The module with the kernel, for activations of one dtype."""
    function = TaskFunction("llvm_backward", machine, ARGUMENTS)

    def task(vectors: Vectors, item: ir.Value, block: ir.Value, channel: ir.Value) -> None:
        place = Place(function=function, read=function.integer, item=item, channel=channel, dtype=dtype)
        walk = Walk(place, vectors, Scratch(function))
        dy, z, dz = place.rows("dy"), place.rows("z"), place.rows("dz")

        def receive(step: ir.Value) -> tuple[Block, Block]:
            gradient = vectors.load(dy.at(step), dtype)

            def through_gate() -> Block:
                gate, slope = vectors.silu_and_slope(vectors.load(z.at(step), dtype))
                return vectors.mul(gradient, gate) + vectors.mul(gradient, slope)

            both = function.choose(place.given("z"), through_gate, gradient + vectors.constant(0.0))
            return both[: vectors.count], both[vectors.count :]

        def pass_on(step: ir.Value, y: Block, factor: Block) -> None:
            with place.builder.if_then(place.given("z")):
                place.store(vectors, vectors.mul(factor, y), dz.at(step), dtype)

        BackwardWalk(walk, block, receive, pass_on, prefetched=[dy, z]).write()

    function.channel_tasks(VECTORS_PER_BLOCK, task)
    return function.module


class BackwardWalk:
    """Writes the walk of a block of channels over all chunks.

    receive(step) gives the gradient of the output before the gate, and a factor; pass_on(step, y, factor) gets that
    factor and the output before the gate.
    """

    def __init__(
        self,
        walk: Walk,
        block: ir.Value,
        receive: Callable[[ir.Value], tuple[Block, Block]],
        pass_on: Callable[[ir.Value, Block, Block], None],
        *,
        prefetched: Sequence[Rows] = (),
    ):
        self.walk = walk
        self.place = walk.place
        self.builder = walk.builder
        self.vectors = walk.vectors
        self.block = block
        self.receive = receive
        self.pass_on = pass_on
        self.prefetched = (walk.u, walk.delta, *prefetched)
        self.du, self.ddelta = walk.place.rows("du"), walk.place.rows("ddelta")
        self.g, self.dA = walk.tile(), walk.tile()
        self.dD, self.dbias = walk.tile(1), walk.tile(1)
        self.steps = walk.tile(CHECKPOINT_EVERY * len(STEP_FIELDS))
        lanes = STATES_AT_ONCE * CHECKPOINT_EVERY * walk.vectors.lanes
        self.lanes_B, self.lanes_C = walk.scratch.take(lanes), walk.scratch.take(lanes)

    def write(self) -> None:
        """All chunks from the last to the first, then the sums over the walk."""
        walk, loop, builder = self.walk, self.walk.function.loop, self.builder
        walk.read_states("dstate", self.g)
        for tile in (self.dA, self.dD, self.dbias):
            tile.clear()
        chunks = builder.udiv(padded_length(self.place), int64(CHECKPOINT_EVERY))
        loop(chunks, lambda number: self._chunk(builder.mul(number, int64(CHECKPOINT_EVERY))), backwards=True)
        walk.write_states("dinitial_state", self.g)
        rows = self.place.item_rows("parameter_parts", builder.add(walk.state, int64(2)))
        loop(walk.state, lambda n: self.vectors.store(self.dA.load(n), rows.at(n)))
        for offset, tile in enumerate((self.dD, self.dbias)):
            self.vectors.store(tile.load(), rows.at(builder.add(walk.state, int64(offset))))

    def _chunk(self, first: ir.Value) -> None:
        walk, loop, builder = self.walk, self.walk.function.loop, self.builder
        count = builder.sub(walk.chunk_end(first), first)
        loop(count, lambda index: self._prepare(index, builder.add(first, index)))
        left = builder.urem(walk.state, int64(STATES_AT_ONCE))
        loop(left, lambda number: self._states([number], first, count))
        loop(
            walk.state,
            lambda number: self._states(
                [builder.add(number, int64(slot)) for slot in range(STATES_AT_ONCE)], first, count
            ),
            start=left,
            step=STATES_AT_ONCE,
        )
        zero = self.vectors.constant(0.0)
        sums = loop(count, lambda index, *sums: self._finish(index, builder.add(first, index), *sums), zero, zero)
        for tile, added in zip((self.dD, self.dbias), sums, strict=True):
            tile.store(self.vectors.add(tile.load(), added))

    def _prepare(self, index: ir.Value, step: ir.Value) -> None:
        """What does not depend on the states: dt and its slope, dy, and the sums at their start."""
        vectors, walk = self.vectors, self.walk
        u = vectors.load(walk.u.at(step), walk.u.dtype)
        dt, slope = walk.step_size_and_slope(step)
        dy, factor = self.receive(step)
        self._keep(index, dt=dt, slope=slope, pushed=vectors.mul(dt, u), dy=dy, factor=factor)
        zero = vectors.constant(0.0)
        self._keep(index, y=vectors.mul(u, walk.D.load()), ddecay=zero, dpushed=zero)

    def _states(self, numbers: Sequence[ir.Value], first: ir.Value, count: ir.Value) -> None:
        """Some states through the steps of the chunk and back."""
        builder, vectors, walk, loop = self.builder, self.vectors, self.walk, self.walk.function.loop
        self._prefetch(numbers, builder.sub(first, int64(CHECKPOINT_EVERY)))
        decays = [walk.A.load(number) for number in numbers]
        kept = walk.checkpoint(first)

        def ahead(index: ir.Value, *before: Block) -> list[Block]:
            B, C = (rows.at(builder.add(first, index)) for rows in (walk.B, walk.C))
            dt, pushed, y, dy = self._recall(index, "dt", "pushed", "y", "dy")
            after = []
            for slot, (number, A, h) in enumerate(zip(numbers, decays, before, strict=True)):
                decay = vectors.exp2(dt, A)
                self._keep(index, **{f"decay_{slot}": decay, f"before_{slot}": h})
                h = vectors.fma(decay, h, vectors.mul(pushed, vectors.broadcast_load(B, number)))
                y = vectors.fma(h, vectors.broadcast_load(C, number), y)
                self._keep_lanes(self.lanes_C, slot, index, vectors.dot(h, dy))
                after.append(h)
            self._keep(index, y=y)
            return after

        def back(index: ir.Value, *carried: Block) -> list[Block]:
            B, C = (rows.at(builder.add(first, index)) for rows in (walk.B, walk.C))
            dt, pushed, dy = self._recall(index, "dt", "pushed", "dy")
            dpushed, ddecay = self._recall(index, "dpushed", "ddecay")
            after = []
            pairs = zip(carried[::2], carried[1::2], strict=True)
            for slot, (number, A, (g, dA)) in enumerate(zip(numbers, decays, pairs, strict=True)):
                decay, before = self._recall(index, f"decay_{slot}", f"before_{slot}")
                G = vectors.fma(vectors.broadcast_load(C, number), dy, g)
                self._keep_lanes(self.lanes_B, slot, index, vectors.dot(G, pushed))
                dpushed = vectors.fma(G, vectors.broadcast_load(B, number), dpushed)
                g = vectors.mul(G, decay)
                flow = vectors.mul(g, before)
                ddecay = vectors.fma(flow, A, ddecay)
                after += [g, vectors.fma(flow, dt, dA)]
            self._keep(index, dpushed=dpushed, ddecay=ddecay)
            return after

        loop(count, ahead, *(vectors.load(kept.at(number)) for number in numbers))
        zero = vectors.constant(0.0)
        ends = loop(count, back, *(block for n in numbers for block in (self.g.load(n), zero)), backwards=True)
        for number, g, dA in zip(numbers, ends[::2], ends[1::2], strict=True):
            self.g.store(g, number)
            self.dA.store(vectors.add(self.dA.load(number), dA), number)
        for which, lanes in enumerate((self.lanes_B, self.lanes_C)):
            for slot, number in enumerate(numbers):
                self._sum_lanes(lanes, slot, self._sequence_parts(which, number, first))

    def _finish(self, index: ir.Value, step: ir.Value, dD: Block, dbias: Block) -> tuple[Block, Block]:
        """The gradients of the step's u and delta; adds to those of D and the bias."""
        vectors, walk = self.vectors, self.walk
        u = vectors.load(walk.u.at(step), walk.u.dtype)
        dt, slope, dy, dpushed, ddecay = self._recall(index, "dt", "slope", "dy", "dpushed", "ddecay")
        ddt = vectors.fma(ddecay, vectors.constant(LN_2), vectors.mul(dpushed, u))
        ddelta = vectors.mul(ddt, slope)
        du = vectors.fma(dpushed, dt, vectors.mul(dy, walk.D.load()))
        self.place.store(vectors, ddelta, self.ddelta.at(step), self.ddelta.dtype)
        self.place.store(vectors, du, self.du.at(step), self.du.dtype)
        self.pass_on(step, *self._recall(index, "y", "factor"))
        return vectors.fma(dy, u, dD), vectors.add(ddelta, dbias)

    def _prefetch(self, numbers: Sequence[ir.Value], first: ir.Value) -> None:
        """Asks for what the chunk before needs: with each state a row of activations and the kept state."""
        for number in numbers:
            step = self.builder.add(first, number)
            for rows in self.prefetched:
                self.vectors.prefetch(rows.at(step), rows.dtype)
            self.vectors.prefetch(self.walk.checkpoint(first).at(number))

    def _keep(self, index: ir.Value, **fields: Block) -> None:
        for name, values in fields.items():
            self.steps.store(values, self._field(index, name))

    def _recall(self, index: ir.Value, *names: str) -> list[Block]:
        return [self.steps.load(self._field(index, name)) for name in names]

    def _field(self, index: ir.Value, name: str) -> ir.Value:
        record = self.builder.mul(index, int64(len(STEP_FIELDS)))
        return self.builder.add(record, int64(STEP_FIELDS.index(name)))

    def _lanes(self, buffer: ir.Value, slot: int, index: ir.Value | int) -> ir.Value:
        """The vector of a step in a buffer for sums over lanes."""
        index = int64(index) if isinstance(index, int) else index
        row = self.builder.add(int64(slot * CHECKPOINT_EVERY), index)
        return element(self.builder, buffer, self.builder.mul(row, int64(self.vectors.lanes)))

    def _keep_lanes(self, buffer: ir.Value, slot: int, index: ir.Value, vector: ir.Value) -> None:
        self.builder.store(vector, self._lanes(buffer, slot, index), align=4)

    def _sum_lanes(self, buffer: ir.Value, slot: int, target: ir.Value) -> None:
        """Writes the sums over lanes of all 16 steps (those beyond the end are never read)."""
        vectors = self.vectors
        for start in range(0, CHECKPOINT_EVERY, vectors.lanes):
            addresses = [self._lanes(buffer, slot, start + row) for row in range(vectors.lanes)]
            rows = [self.builder.load(address, typ=vectors.vector, align=4) for address in addresses]
            self._add_part(vectors.sum_lanes(rows), element(self.builder, target, start))

    def _add_part(self, sums: Any, target: ir.Value) -> None:
        """Writes a vector of sums, or adds it to those of the task's blocks before."""
        builder, blocks_per_task = self.builder, self.place.read("blocks_per_task")
        zero = (ir.Constant(sums.type, [0.0] * self.vectors.lanes),)
        alone = builder.icmp_unsigned("==", blocks_per_task, int64(1))
        later = builder.icmp_unsigned("!=", builder.urem(self.block, blocks_per_task), int64(0))
        with builder.if_else(alone) as (past, through):
            with past:
                self.vectors.store_streaming(sums, target)
            with through:
                load = lambda: (builder.load(target, typ=sums.type, align=4),)  # noqa: E731
                (before,) = self.walk.function.choose(later, load, zero)
                builder.store(builder.fadd(before, sums), target, align=4)

    def _sequence_parts(self, which: int, number: ir.Value, first: ir.Value) -> ir.Value:
        """Where the block's sums for a state and a chunk go: of dB (which = 0) or dC (1)."""
        builder, place = self.builder, self.place
        task = builder.udiv(self.block, place.read("blocks_per_task"))
        item = builder.add(builder.mul(task, place.read("batch")), place.item)
        kind = builder.add(builder.mul(item, int64(2)), int64(which))
        row = builder.add(builder.mul(kind, self.walk.state), number)
        start = builder.add(builder.mul(row, padded_length(place)), first)
        return element(builder, place.address("sequence_parts"), start)
