"""The gradients of the scan as vector instructions: chunk by chunk from the last one to the first.

A chunk of 16 steps starts from the states that the forward walk kept. For one state at a time it is walked forwards
(decays and states go to a small buffer) and backwards (the adjoint of the state). With G the gradient of h[t]:
G = g + C dy, then g = exp(dt A) G for the step before, dA += g h[t-1] dt, and so on. Sums over states stay in the
block; sums over the batch and over blocks of channels are written as parts and added later, in a fixed order.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.vectors import Block, Vectors, element, int64
from mambar.ops.selective_scan.llvm_walk import CHECKPOINT_EVERY, Place, Rows, Tiles

VECTORS_PER_BLOCK = 2
STATES_AT_ONCE = 2
LN_2 = math.log(2.0)

# As for the forward kernel; `parameter_parts` is (batch, state + 2, inner): the rows of dA, then dD and ddelta_bias;
# `sequence_parts` is (blocks, batch, 2, state, chunks * 16): dB and dC in the order of the walk.
ARGUMENTS = (
    *("num_tasks", "length", "inner", "state", "batch", "delta_softplus", "streaming"),
    *("u", "u_batch", "u_time", "delta", "delta_batch", "delta_time", "z", "z_batch", "z_time"),
    *("B", "B_batch", "B_time", "C", "C_batch", "C_time", "dy", "dy_batch", "dy_time"),
    *("du", "du_batch", "du_time", "ddelta", "ddelta_batch", "ddelta_time", "dz", "dz_batch", "dz_time"),
    *("A", "D", "delta_bias", "checkpoints", "dstate", "dinitial_state", "parameter_parts", "sequence_parts"),
)


# What is kept of each step of a chunk, side by side: buffers of a whole chunk would lie whole pages apart, where they
# push each other out of the cache.
STEP_FIELDS = (
    *("dt", "slope", "pushed", "dy", "factor", "y", "ddecay", "dpushed"),
    *(f"{name} {slot}" for slot in range(STATES_AT_ONCE) for name in ("decay", "before")),
)


def scratch_floats(machine: Machine, state: int) -> int:
    """The scratch of one thread: tiles of A, g and dA, D, bias and their gradients, a chunk, sums over lanes."""
    width = VECTORS_PER_BLOCK * machine.lanes
    return (
        3 * state + 4 + len(STEP_FIELDS) * CHECKPOINT_EVERY
    ) * width + 2 * STATES_AT_ONCE * CHECKPOINT_EVERY * machine.lanes


def write(machine: Machine, dtype: str) -> ir.Module:
    """The module with the kernel, for activations of one dtype."""
    function = TaskFunction("llvm_backward", machine, ARGUMENTS)
    builder = function.builder

    def task(vectors: Vectors, item: ir.Value, block: ir.Value, channel: ir.Value) -> None:
        place = Place(function=function, read=function.integer, item=item, channel=channel, dtype=dtype)
        dy, z, dz = place.rows("dy"), place.rows("z"), place.rows("dz")
        gated = function.is_given(place.address("z"))

        def receive(step: ir.Value) -> tuple[Block, Block]:
            gradient = vectors.load(dy.at(step), dtype)

            def through_gate() -> Block:
                gate, slope = vectors.silu_and_slope(vectors.load(z.at(step), dtype))
                return vectors.mul(gradient, gate) + vectors.mul(gradient, slope)

            both = function.choose(gated, through_gate, gradient + vectors.constant(0.0))
            return both[: vectors.count], both[vectors.count :]

        def pass_on(step: ir.Value, y: Block, factor: Block) -> None:
            with builder.if_then(gated):
                place.store(vectors, vectors.mul(factor, y), dz.at(step), dtype)

        walk_backward(place, vectors, Scratch(function), block, receive, pass_on, prefetched=[dy, z])

    function.channel_tasks(VECTORS_PER_BLOCK, task)
    return function.module


def walk_backward(
    place: Place,
    vectors: Vectors,
    scratch: Scratch,
    block: ir.Value,
    receive: Callable[[ir.Value], tuple[Block, Block]],
    pass_on: Callable[[ir.Value, Block, Block], None],
    *,
    prefetched: Sequence[Rows] = (),
) -> None:
    """Writes the walk back over all chunks of a block.

    receive(step) gives the gradient of the output before the gate, and a factor; pass_on(step, y, factor) gets that
    factor and the output before the gate.
    """
    function, builder, walk = place.function, place.function.builder, place.walk()
    tiles = Tiles(function, vectors, walk, scratch)
    tiles.fill()
    sums = Sums(
        g=tiles.take(scratch),
        A=tiles.take(scratch),
        D=scratch.take(vectors.width),
        bias=scratch.take(vectors.width),
        lanes_B=scratch.take(STATES_AT_ONCE * CHECKPOINT_EVERY * vectors.lanes),
        lanes_C=scratch.take(STATES_AT_ONCE * CHECKPOINT_EVERY * vectors.lanes),
    )
    chunk = scratch.take(CHECKPOINT_EVERY * len(STEP_FIELDS) * vectors.width)
    tiles.clear(sums.g)
    tiles.clear(sums.A)
    for tile in (sums.D, sums.bias):
        vectors.store_tile(vectors.constant(0.0), tile)
    dstate, dinitial = place.states("dstate"), place.states("dinitial_state")
    with builder.if_then(function.is_given(dstate)):
        tiles.read(sums.g, dstate)
    every = int64(CHECKPOINT_EVERY)
    chunks = builder.udiv(builder.add(walk.length, int64(CHECKPOINT_EVERY - 1)), every)
    steps = ChunkSteps(place, tiles, chunk, sums, receive, pass_on, prefetched)

    def one(number: ir.Value) -> None:
        first = builder.mul(number, every)
        count = builder.sub(place.chunk_end(first), first)
        parts = _sequence_parts(place, block, first)
        function.loop(count, lambda index: steps.prepare(index, builder.add(first, index)))
        left = builder.urem(walk.state, int64(STATES_AT_ONCE))
        function.loop(left, lambda n: steps.states([n], first, count, parts))
        function.loop(
            walk.state,
            lambda n: steps.states([builder.add(n, int64(k)) for k in range(STATES_AT_ONCE)], first, count, parts),
            start=left,
            step=STATES_AT_ONCE,
        )
        zero = vectors.constant(0.0)
        added = function.loop(
            count, lambda index, *totals: steps.finish(index, builder.add(first, index), *totals), zero, zero
        )
        for tile, values in zip((sums.D, sums.bias), added, strict=True):
            vectors.store_tile(vectors.add(vectors.load_tile(tile), values), tile)

    function.loop(chunks, one, backwards=True)
    with builder.if_then(function.is_given(dinitial)):
        tiles.write(sums.g, dinitial)
    rows = _parameter_parts(place)
    function.loop(walk.state, lambda n: vectors.store(vectors.load_tile(tiles.at(sums.A, n)), rows.at(n)))
    vectors.store(vectors.load_tile(sums.D), rows.at(walk.state))
    vectors.store(vectors.load_tile(sums.bias), rows.at(builder.add(walk.state, int64(1))))


class Sums(NamedTuple):
    """Scratch for what is summed over a walk: the adjoint state, dA, dD, ddelta_bias; and over the lanes of a chunk."""

    g: ir.Value
    A: ir.Value
    D: ir.Value
    bias: ir.Value
    lanes_B: ir.Value
    lanes_C: ir.Value


class ChunkSteps:
    """Writes the three loops over a chunk."""

    def __init__(
        self,
        place: Place,
        tiles: Tiles,
        chunk: ir.Value,
        sums: Sums,
        receive: Callable[[ir.Value], tuple[Block, Block]],
        pass_on: Callable[[ir.Value, Block, Block], None],
        prefetched: Sequence[Rows],
    ):
        self.place = place
        self.tiles = tiles
        self.chunk = chunk
        self.sums = sums
        self.receive = receive
        self.pass_on = pass_on
        self.vectors = tiles.vectors
        self.prefetched = (tiles.walk.u, tiles.walk.delta, *prefetched)
        self.du, self.ddelta = place.rows("du"), place.rows("ddelta")

    def prepare(self, index: ir.Value, step: ir.Value) -> None:
        """What does not depend on the states: dt and its slope, dy, and the sums at their start."""
        vectors, walk = self.vectors, self.tiles.walk
        u = vectors.load(walk.u.at(step), walk.u.dtype)
        dt, slope = self.tiles.step_size_and_slope(vectors.load(walk.delta.at(step), walk.delta.dtype))
        dy, factor = self.receive(step)
        zero = vectors.constant(0.0)
        start = {
            "dt": dt,
            "slope": slope,
            "pushed": vectors.mul(dt, u),
            "dy": dy,
            "factor": factor,
            "y": vectors.mul(u, vectors.load_tile(self.tiles.D)),
            "ddecay": zero,
            "dpushed": zero,
        }
        for name, values in start.items():
            vectors.store_tile(values, self._at(name, index))

    def states(self, numbers: Sequence[ir.Value], first: ir.Value, count: ir.Value, parts: ir.Value) -> None:
        """Some states through the steps of the chunk and back."""
        function, builder, vectors, tiles = self.place.function, self.place.function.builder, self.vectors, self.tiles
        decays = [vectors.load_tile(tiles.at(tiles.A, number)) for number in numbers]
        self._prefetch(numbers, builder.sub(first, int64(CHECKPOINT_EVERY)))
        kept = [self.place.checkpoint(first).at(number) for number in numbers]

        def ahead(index: ir.Value, *before: Block) -> list[Block]:
            B, C = (rows.at(builder.add(first, index)) for rows in (tiles.walk.B, tiles.walk.C))
            dt, pushed, y, dy = (self._load(name, index) for name in ("dt", "pushed", "y", "dy"))
            after = []
            for slot, (number, A, h) in enumerate(zip(numbers, decays, before, strict=True)):
                decay = vectors.exp2(dt, A)
                vectors.store_tile(decay, self._at(f"decay {slot}", index))
                vectors.store_tile(h, self._at(f"before {slot}", index))
                h = vectors.fma(decay, h, vectors.mul(pushed, vectors.broadcast_load(B, number)))
                y = vectors.fma(h, vectors.broadcast_load(C, number), y)
                self._keep_lanes(self.sums.lanes_C, slot, index, vectors.dot(h, dy))
                after.append(h)
            vectors.store_tile(y, self._at("y", index))
            return after

        def back(index: ir.Value, *carried: Block) -> list[Block]:
            B, C = (rows.at(builder.add(first, index)) for rows in (tiles.walk.B, tiles.walk.C))
            names = ("dt", "pushed", "dy", "dpushed", "ddecay")
            dt, pushed, dy, dpushed, ddecay = (self._load(name, index) for name in names)
            after = []
            pairs = zip(carried[::2], carried[1::2], strict=True)
            for slot, (number, A, (g, dA)) in enumerate(zip(numbers, decays, pairs, strict=True)):
                G = vectors.fma(vectors.broadcast_load(C, number), dy, g)
                self._keep_lanes(self.sums.lanes_B, slot, index, vectors.dot(G, pushed))
                dpushed = vectors.fma(G, vectors.broadcast_load(B, number), dpushed)
                g = vectors.mul(G, self._load(f"decay {slot}", index))
                flow = vectors.mul(g, self._load(f"before {slot}", index))
                ddecay = vectors.fma(flow, A, ddecay)
                after += [g, vectors.fma(flow, dt, dA)]
            vectors.store_tile(dpushed, self._at("dpushed", index))
            vectors.store_tile(ddecay, self._at("ddecay", index))
            return after

        function.loop(count, ahead, *(vectors.load(row) for row in kept))
        zero = vectors.constant(0.0)
        adjoints = [tiles.at(self.sums.g, number) for number in numbers]
        start = [block for adjoint in adjoints for block in (vectors.load_tile(adjoint), zero)]
        ends = function.loop(count, back, *start, backwards=True)
        for adjoint, number, g, dA in zip(adjoints, numbers, ends[::2], ends[1::2], strict=True):
            vectors.store_tile(g, adjoint)
            total = tiles.at(self.sums.A, number)
            vectors.store_tile(vectors.add(vectors.load_tile(total), dA), total)
        length = _padded_length(self.place)
        for which, lanes in enumerate((self.sums.lanes_B, self.sums.lanes_C)):
            for slot, number in enumerate(numbers):
                row = builder.add(builder.mul(int64(which), tiles.walk.state), number)
                self._sum_lanes(lanes, slot, element(builder, parts, builder.mul(row, length)))

    def finish(self, index: ir.Value, step: ir.Value, dD: Block, dbias: Block) -> tuple[Block, Block]:
        """The gradients of the step's u and delta; adds to those of D and the bias."""
        vectors, walk = self.vectors, self.tiles.walk
        u = vectors.load(walk.u.at(step), walk.u.dtype)
        dy, dpushed, dt = (self._load(name, index) for name in ("dy", "dpushed", "dt"))
        ddt = vectors.fma(self._load("ddecay", index), vectors.constant(LN_2), vectors.mul(dpushed, u))
        ddelta = vectors.mul(ddt, self._load("slope", index))
        du = vectors.fma(dpushed, dt, vectors.mul(dy, vectors.load_tile(self.tiles.D)))
        self.place.store(vectors, ddelta, self.ddelta.at(step), self.ddelta.dtype)
        self.place.store(vectors, du, self.du.at(step), self.du.dtype)
        self.pass_on(step, self._load("y", index), self._load("factor", index))
        return vectors.fma(dy, u, dD), vectors.add(ddelta, dbias)

    def _prefetch(self, numbers: Sequence[ir.Value], first: ir.Value) -> None:
        """Asks for what the chunk before needs: with each state a row of activations and the kept state."""
        for number in numbers:
            step = self.place.function.builder.add(first, number)
            for rows in self.prefetched:
                self.vectors.prefetch(rows.at(step), rows.dtype)
            self.vectors.prefetch(self.place.checkpoint(first).at(number))

    def _at(self, name: str, index: ir.Value) -> ir.Value:
        builder = self.place.function.builder
        record = builder.mul(index, int64(len(STEP_FIELDS)))
        return self.tiles.at(self.chunk, builder.add(record, int64(STEP_FIELDS.index(name))))

    def _load(self, name: str, index: ir.Value) -> Block:
        return self.vectors.load_tile(self._at(name, index))

    def _lanes(self, buffer: ir.Value, slot: int, index: ir.Value | int) -> ir.Value:
        """The vector of a step in a buffer for sums over lanes."""
        builder = self.place.function.builder
        index = int64(index) if isinstance(index, int) else index
        row = builder.add(int64(slot * CHECKPOINT_EVERY), index)
        return element(builder, buffer, builder.mul(row, int64(self.vectors.lanes)))

    def _keep_lanes(self, buffer: ir.Value, slot: int, index: ir.Value, vector: ir.Value) -> None:
        self.place.function.builder.store(vector, self._lanes(buffer, slot, index), align=4)

    def _sum_lanes(self, buffer: ir.Value, slot: int, target: ir.Value) -> None:
        """Writes the sums over lanes of all 16 steps (those beyond the end are never read)."""
        builder, vectors = self.place.function.builder, self.vectors
        for start in range(0, CHECKPOINT_EVERY, vectors.lanes):
            addresses = [self._lanes(buffer, slot, start + row) for row in range(vectors.lanes)]
            rows = [builder.load(address, typ=vectors.vector, align=4) for address in addresses]
            vectors.store_streaming(vectors.sum_lanes(rows), element(builder, target, start))


def padded(length: int) -> int:
    """A length in whole chunks."""
    return -(-length // CHECKPOINT_EVERY) * CHECKPOINT_EVERY


def _padded_length(place: Place) -> ir.Value:
    builder = place.function.builder
    return builder.and_(builder.add(place.read("length"), int64(CHECKPOINT_EVERY - 1)), int64(-CHECKPOINT_EVERY))


def _sequence_parts(place: Place, block: ir.Value, first: ir.Value) -> ir.Value:
    """Where the block's sums for a chunk begin: dB of the first state."""
    builder = place.function.builder
    row = builder.add(builder.mul(block, place.read("batch")), place.item)
    rows = builder.mul(builder.mul(row, int64(2)), place.read("state"))
    start = builder.add(builder.mul(rows, _padded_length(place)), first)
    return element(builder, place.address("sequence_parts"), start)


def _parameter_parts(place: Place) -> Rows:
    """The block's rows of parameter sums: dA for each state, dD, ddelta_bias."""
    builder, inner = place.function.builder, place.read("inner")
    rows = builder.mul(place.item, builder.add(place.read("state"), int64(2)))
    start = builder.add(builder.mul(rows, inner), place.channel)
    first = element(builder, place.address("parameter_parts"), start)
    return Rows(builder=builder, first=first, stride=inner)
