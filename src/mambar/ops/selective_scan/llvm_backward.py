"""The LLVM kernel of the backward scan: processes chunks from the last one to the first.

A chunk of 16 steps starts from the states saved by the forward pass. For two states at a time, a forward loop
recomputes decays and states into a small buffer, and a reverse loop computes the adjoint of the state. With G the
gradient of h[t]: G = g + C dy, then g = exp(dt A) G for the previous step, dA += g h[t-1] dt. Sums over states stay in
the block. Sums over the batch and over blocks of channels are stored as parts and added later in a fixed order.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction, num_channel_blocks
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import Rows, TaskTensors, strided
from mambar.ops.llvm.vectors import Block, Vectors, element_pointer, int64
from mambar.ops.selective_scan.llvm_scan_loop import CHECKPOINT_EVERY, ScanLoop, padded_length

VECTORS_PER_BLOCK = 2
STATES_PER_PASS = 2
LN_2 = math.log(2.0)

# As for the forward kernel. `parameter_parts` is (batch, d_state + 2, d_inner): the rows of dA, then dD and
# ddelta_bias. `sequence_parts` is (tasks per item, batch, 2, d_state, chunks * 16): dB and dC in scan order, summed
# over the blocks of a task.
ARGUMENTS = (
    *("num_tasks", "length", "inner", "state", "batch", "blocks_per_task", "delta_softplus", "streaming"),
    *strided("u", "delta", "z", "B", "C", "dy", "du", "ddelta", "dz"),
    *("A", "D", "delta_bias", "checkpoints", "dstate", "dinitial_state", "parameter_parts", "sequence_parts"),
)


# Fields saved for each step of a chunk, interleaved by step. Separate buffers per field would be whole pages apart and
# evict each other from the cache.
STEP_FIELDS = (
    *("dt", "derivative", "dt_u", "dy", "gate_factor", "y", "ddecay", "ddt_u"),
    *(f"{name}_{slot}" for slot in range(STATES_PER_PASS) for name in ("decay", "before")),
)


def scratch_floats(machine: Machine, state: int) -> int:
    """Size of the scratch memory of one thread: tiles of parameters and gradients, a chunk, sums over lanes."""
    rows = 3 * state + 4 + len(STEP_FIELDS) * CHECKPOINT_EVERY
    return (rows * VECTORS_PER_BLOCK + 2 * STATES_PER_PASS * CHECKPOINT_EVERY) * machine.lanes


def blocks_per_task(machine: Machine, batch: int, inner: int) -> tuple[int, int]:
    """The number of blocks per task and of tasks per batch item; depends on the sizes only, never on threads.

    The blocks of a task share their sums over channels, which saves memory traffic if there are many blocks; 64 tasks
    are enough for as many cores.
    """
    blocks = num_channel_blocks(machine, inner, VECTORS_PER_BLOCK)
    size = min(blocks, max(1, blocks * batch // 64))
    return size, -(-blocks // size)


def build_ir(machine: Machine, dtype: str) -> ir.Module:
    """The LLVM IR of the kernel for a dtype of the activations."""
    function = TaskFunction("llvm_backward", machine, ARGUMENTS)

    def task(vectors: Vectors, item: ir.Value, block: ir.Value, channel: ir.Value) -> None:
        tensors = TaskTensors(function=function, argument=function.integer, item=item, channel=channel, dtype=dtype)
        scan = ScanLoop(tensors, vectors, Scratch(function))
        dy, z, dz = tensors.rows("dy"), tensors.rows("z"), tensors.rows("dz")

        def load_gradient(step: ir.Value) -> tuple[Block, Block]:
            gradient = vectors.load(dy.at(step), dtype)

            def through_gate() -> Block:
                gate, derivative = vectors.silu_and_derivative(vectors.load(z.at(step), dtype))
                return vectors.mul(gradient, gate) + vectors.mul(gradient, derivative)

            both = function.choose(tensors.is_set("z"), through_gate, gradient + vectors.constant(0.0))
            return both[: vectors.count], both[vectors.count :]

        def store_gate_gradient(step: ir.Value, y: Block, gate_factor: Block) -> None:
            with tensors.builder.if_then(tensors.is_set("z")):
                tensors.store(vectors, vectors.mul(gate_factor, y), dz.at(step), dtype)

        BackwardScan(scan, block, load_gradient, store_gate_gradient, prefetched=[dy, z]).emit()

    function.for_each_channel_block(VECTORS_PER_BLOCK, task)
    return function.module


class BackwardScan:
    """Emits the backward scan of a block of channels over all chunks.

    load_gradient(step) returns the gradient of the output before the gate, and a factor of the gate's gradient.
    store_gate_gradient(step, y, factor) receives that factor and the output before the gate.
    """

    def __init__(
        self,
        scan: ScanLoop,
        block: ir.Value,
        load_gradient: Callable[[ir.Value], tuple[Block, Block]],
        store_gate_gradient: Callable[[ir.Value, Block, Block], None],
        *,
        prefetched: Sequence[Rows] = (),
    ):
        self.scan = scan
        self.tensors = scan.tensors
        self.builder = scan.builder
        self.vectors = scan.vectors
        self.block = block
        self.load_gradient = load_gradient
        self.store_gate_gradient = store_gate_gradient
        self.prefetched = (scan.u, scan.delta, *prefetched)
        self.du, self.ddelta = scan.tensors.rows("du"), scan.tensors.rows("ddelta")
        self.g, self.dA = scan.tile(), scan.tile()
        self.dD, self.dbias = scan.tile(1), scan.tile(1)
        self.steps = scan.tile(CHECKPOINT_EVERY * len(STEP_FIELDS))
        lanes = STATES_PER_PASS * CHECKPOINT_EVERY * scan.vectors.lanes
        self.lanes_B, self.lanes_C = scan.scratch.allocate(lanes), scan.scratch.allocate(lanes)

    def emit(self) -> None:
        """Emits all chunks from the last to the first, then the stores of the sums over the scan."""
        scan, loop, builder = self.scan, self.scan.function.loop, self.builder
        scan.read_states("dstate", self.g)
        for tile in (self.dA, self.dD, self.dbias):
            tile.clear()
        chunks = builder.udiv(padded_length(self.tensors), int64(CHECKPOINT_EVERY))
        loop(chunks, lambda number: self._chunk(builder.mul(number, int64(CHECKPOINT_EVERY))), reverse=True)
        scan.write_states("dinitial_state", self.g)
        rows = self.tensors.item_rows("parameter_parts", builder.add(scan.state, int64(2)))
        loop(scan.state, lambda n: self.vectors.store(self.dA.load(n), rows.at(n)))
        for offset, tile in enumerate((self.dD, self.dbias)):
            self.vectors.store(tile.load(), rows.at(builder.add(scan.state, int64(offset))))

    def _chunk(self, first: ir.Value) -> None:
        scan, loop, builder = self.scan, self.scan.function.loop, self.builder
        count = builder.sub(scan.chunk_end(first), first)
        loop(count, lambda index: self._prepare(index, builder.add(first, index)))
        left = builder.urem(scan.state, int64(STATES_PER_PASS))
        loop(left, lambda number: self._states([number], first, count))
        loop(
            scan.state,
            lambda number: self._states(
                [builder.add(number, int64(slot)) for slot in range(STATES_PER_PASS)], first, count
            ),
            start=left,
            step=STATES_PER_PASS,
        )
        zero = self.vectors.constant(0.0)
        sums = loop(count, lambda index, *sums: self._finish(index, builder.add(first, index), *sums), zero, zero)
        for tile, added in zip((self.dD, self.dbias), sums, strict=True):
            tile.store(self.vectors.add(tile.load(), added))

    def _prepare(self, index: ir.Value, step: ir.Value) -> None:
        """Stores the fields that do not depend on the states: dt and its derivative, dy, and the initial sums."""
        vectors, scan = self.vectors, self.scan
        u = vectors.load(scan.u.at(step), scan.u.dtype)
        dt, derivative = scan.step_size_and_derivative(step)
        dy, gate_factor = self.load_gradient(step)
        self._store_fields(index, dt=dt, derivative=derivative, dt_u=vectors.mul(dt, u), dy=dy, gate_factor=gate_factor)
        zero = vectors.constant(0.0)
        self._store_fields(index, y=vectors.mul(u, scan.D.load()), ddecay=zero, ddt_u=zero)

    def _states(self, numbers: Sequence[ir.Value], first: ir.Value, count: ir.Value) -> None:
        """Some states over the steps of the chunk, forward and in reverse."""
        builder, vectors, scan, loop = self.builder, self.vectors, self.scan, self.scan.function.loop
        self._prefetch(numbers, builder.sub(first, int64(CHECKPOINT_EVERY)))
        decays = [scan.A.load(number) for number in numbers]
        saved = scan.checkpoint(first)

        def forward(index: ir.Value, *before: Block) -> list[Block]:
            B, C = (rows.at(builder.add(first, index)) for rows in (scan.B, scan.C))
            dt, dt_u, y, dy = self._load_fields(index, "dt", "dt_u", "y", "dy")
            after = []
            for slot, (number, A, h) in enumerate(zip(numbers, decays, before, strict=True)):
                decay = vectors.exp2(dt, A)
                self._store_fields(index, **{f"decay_{slot}": decay, f"before_{slot}": h})
                h = vectors.fma(decay, h, vectors.mul(dt_u, vectors.broadcast_load(B, number)))
                y = vectors.fma(h, vectors.broadcast_load(C, number), y)
                self._store_lanes(self.lanes_C, slot, index, vectors.dot(h, dy))
                after.append(h)
            self._store_fields(index, y=y)
            return after

        def backward(index: ir.Value, *carried: Block) -> list[Block]:
            B, C = (rows.at(builder.add(first, index)) for rows in (scan.B, scan.C))
            dt, dt_u, dy = self._load_fields(index, "dt", "dt_u", "dy")
            ddt_u, ddecay = self._load_fields(index, "ddt_u", "ddecay")
            after = []
            pairs = zip(carried[::2], carried[1::2], strict=True)
            for slot, (number, A, (g, dA)) in enumerate(zip(numbers, decays, pairs, strict=True)):
                decay, before = self._load_fields(index, f"decay_{slot}", f"before_{slot}")
                G = vectors.fma(vectors.broadcast_load(C, number), dy, g)
                self._store_lanes(self.lanes_B, slot, index, vectors.dot(G, dt_u))
                ddt_u = vectors.fma(G, vectors.broadcast_load(B, number), ddt_u)
                g = vectors.mul(G, decay)
                grad_exponent = vectors.mul(g, before)
                ddecay = vectors.fma(grad_exponent, A, ddecay)
                after += [g, vectors.fma(grad_exponent, dt, dA)]
            self._store_fields(index, ddt_u=ddt_u, ddecay=ddecay)
            return after

        loop(count, forward, *(vectors.load(saved.at(number)) for number in numbers))
        zero = vectors.constant(0.0)
        ends = loop(count, backward, *(block for n in numbers for block in (self.g.load(n), zero)), reverse=True)
        for number, g, dA in zip(numbers, ends[::2], ends[1::2], strict=True):
            self.g.store(g, number)
            self.dA.store(vectors.add(self.dA.load(number), dA), number)
        for which, lanes in enumerate((self.lanes_B, self.lanes_C)):
            for slot, number in enumerate(numbers):
                self._sum_lanes(lanes, slot, self._sequence_parts(which, number, first))

    def _finish(self, index: ir.Value, step: ir.Value, dD: Block, dbias: Block) -> tuple[Block, Block]:
        """Stores the gradients of u and delta of a step; adds to those of D and the bias."""
        vectors, scan = self.vectors, self.scan
        u = vectors.load(scan.u.at(step), scan.u.dtype)
        dt, derivative, dy, ddt_u, ddecay = self._load_fields(index, "dt", "derivative", "dy", "ddt_u", "ddecay")
        ddt = vectors.fma(ddecay, vectors.constant(LN_2), vectors.mul(ddt_u, u))
        ddelta = vectors.mul(ddt, derivative)
        du = vectors.fma(ddt_u, dt, vectors.mul(dy, scan.D.load()))
        self.tensors.store(vectors, ddelta, self.ddelta.at(step), self.ddelta.dtype)
        self.tensors.store(vectors, du, self.du.at(step), self.du.dtype)
        self.store_gate_gradient(step, *self._load_fields(index, "y", "gate_factor"))
        return vectors.fma(dy, u, dD), vectors.add(ddelta, dbias)

    def _prefetch(self, numbers: Sequence[ir.Value], first: ir.Value) -> None:
        """Prefetches the data of the previous chunk: per state, one row of activations and the saved state."""
        for number in numbers:
            step = self.builder.add(first, number)
            for rows in self.prefetched:
                self.vectors.prefetch(rows.at(step), rows.dtype)
            self.vectors.prefetch(self.scan.checkpoint(first).at(number))

    def _store_fields(self, index: ir.Value, **fields: Block) -> None:
        for name, values in fields.items():
            self.steps.store(values, self._field(index, name))

    def _load_fields(self, index: ir.Value, *names: str) -> list[Block]:
        return [self.steps.load(self._field(index, name)) for name in names]

    def _field(self, index: ir.Value, name: str) -> ir.Value:
        record = self.builder.mul(index, int64(len(STEP_FIELDS)))
        return self.builder.add(record, int64(STEP_FIELDS.index(name)))

    def _lanes(self, buffer: ir.Value, slot: int, index: ir.Value | int) -> ir.Value:
        """A pointer to the vector of a step in a buffer for sums over lanes."""
        row = self.builder.add(int64(slot * CHECKPOINT_EVERY), int64(index))
        return element_pointer(self.builder, buffer, self.builder.mul(row, int64(self.vectors.lanes)))

    def _store_lanes(self, buffer: ir.Value, slot: int, index: ir.Value, vector: ir.Value) -> None:
        self.builder.store(vector, self._lanes(buffer, slot, index), align=4)

    def _sum_lanes(self, buffer: ir.Value, slot: int, target: ir.Value) -> None:
        """Stores the sums over lanes of all 16 steps; those beyond the end are never read."""
        vectors = self.vectors
        for start in range(0, CHECKPOINT_EVERY, vectors.lanes):
            addresses = [self._lanes(buffer, slot, start + row) for row in range(vectors.lanes)]
            rows = [self.builder.load(address, typ=vectors.vector, align=4) for address in addresses]
            self._add_part(vectors.sum_lanes(rows), element_pointer(self.builder, target, start))

    def _add_part(self, sums: Any, target: ir.Value) -> None:
        """Stores a vector of sums, or adds it to those of the task's previous blocks."""
        builder, blocks_per_task = self.builder, self.tensors.argument("blocks_per_task")
        zero = (ir.Constant(sums.type, [0.0] * self.vectors.lanes),)
        alone = builder.icmp_unsigned("==", blocks_per_task, int64(1))
        later = builder.icmp_unsigned("!=", builder.urem(self.block, blocks_per_task), int64(0))
        with builder.if_else(alone) as (streamed, cached):
            with streamed:
                self.vectors.store_streaming(sums, target)
            with cached:
                load = lambda: (builder.load(target, typ=sums.type, align=4),)  # noqa: E731
                (before,) = self.scan.function.choose(later, load, zero)
                builder.store(builder.fadd(before, sums), target, align=4)

    def _sequence_parts(self, which: int, number: ir.Value, first: ir.Value) -> ir.Value:
        """A pointer to the block's sums for a state and a chunk: of dB (which = 0) or dC (1)."""
        builder, tensors = self.builder, self.tensors
        task = builder.udiv(self.block, tensors.argument("blocks_per_task"))
        item = builder.add(builder.mul(task, tensors.argument("batch")), tensors.item)
        kind = builder.add(builder.mul(item, int64(2)), int64(which))
        row = builder.add(builder.mul(kind, self.scan.state), number)
        start = builder.add(builder.mul(row, padded_length(tensors)), first)
        return element_pointer(builder, tensors.pointer("sequence_parts"), start)
