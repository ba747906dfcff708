"""One walk of a block of channels through time: where its rows lie, and its parameters turned into tiles.

A *tile* is scratch laid out `[state][lane]`; the tensors it comes from are `[channel][state]`. The direction
of a walk is a matter of the addresses: backwards in time means starting at the last row with a negative
stride.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.vectors import FLOAT, LOG2_E, POINTER, Block, Builder, Vectors, element, int64

CHECKPOINT_EVERY = 16
# A is taken as at least this (and -Inf with it): far below any that leaves something of a state.
LEAST_DECAY = -1e9


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one batch item, in the order of the walk: row k starts `k * stride` elements after the first."""

    builder: Builder
    first: ir.Value
    stride: ir.Value
    dtype: str = "float32"

    def at(self, step: ir.Value, offset: ir.Value | int = 0) -> ir.Value:
        """The address of an element of the row of a step."""
        row = element(self.builder, self.first, self.builder.mul(step, self.stride), self.dtype)
        return element(self.builder, row, offset, self.dtype)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What one walk reads: rows of activations, and the parameters of the block's first channel (0: not given)."""

    u: Rows
    delta: Rows
    B: Rows
    C: Rows
    A: ir.Value
    D: ir.Value
    delta_bias: ir.Value
    delta_softplus: ir.Value
    length: ir.Value
    state: ir.Value


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a task works: a batch item and its first channel; `read` gives an argument of the kernel by name."""

    function: TaskFunction
    read: Callable[[str], ir.Value]
    item: ir.Value
    channel: ir.Value
    dtype: str

    def rows(self, name: str, *, by_channel: bool = True, dtype: str | None = None) -> Rows:
        """The item's rows of an activation, given as `name`, `name_batch` and `name_time`."""
        builder, dtype = self.function.builder, dtype or self.dtype
        start = builder.mul(self.item, self.read(f"{name}_batch"))
        if by_channel:
            start = builder.add(start, self.channel)
        first = element(builder, self.address(name), start, dtype)
        return Rows(builder=builder, first=first, stride=self.read(f"{name}_time"), dtype=dtype)

    def address(self, name: str) -> ir.Value:
        """A tensor's address as given; null where it is not."""
        return self.function.builder.inttoptr(self.read(name), POINTER)

    def shifted(self, name: str, offset: ir.Value) -> ir.Value:
        """The address of an element of a float32 tensor; null where the tensor is not given."""
        address = self.address(name)
        moved = element(self.function.builder, address, offset)
        return self.function.builder.select(self.function.is_given(address), moved, address)

    def states(self, name: str) -> ir.Value:
        """The address of the channel's states in a (batch, inner, state) tensor."""
        builder = self.function.builder
        row = builder.add(builder.mul(self.item, self.read("inner")), self.channel)
        return self.shifted(name, builder.mul(row, self.read("state")))

    def checkpoint(self, first: ir.Value) -> Rows:
        """The kept states before step `first`, a multiple of CHECKPOINT_EVERY: one row of channels for each state."""
        builder, inner = self.function.builder, self.read("inner")
        every = int64(CHECKPOINT_EVERY)
        chunks = builder.udiv(builder.add(self.read("length"), int64(CHECKPOINT_EVERY - 1)), every)
        number = builder.add(builder.mul(self.item, chunks), builder.udiv(first, every))
        row = builder.mul(builder.mul(number, self.read("state")), inner)
        start = element(builder, self.address("checkpoints"), builder.add(row, self.channel))
        return Rows(builder=builder, first=start, stride=inner)

    def chunk_end(self, first: ir.Value) -> ir.Value:
        """The step after the last one of the chunk that begins with step `first`."""
        end = self.function.builder.add(first, int64(CHECKPOINT_EVERY))
        length = self.read("length")
        return self.function.builder.select(self.function.builder.icmp_signed("<", end, length), end, length)

    def store(self, vectors: Vectors, values: Block, pointer: ir.Value, dtype: str = "float32") -> None:
        """Writes results, past the caches where the argument `streaming` says so."""
        if vectors.masked:
            vectors.store(values, pointer, dtype)
            return
        streaming = self.function.builder.icmp_unsigned("!=", self.read("streaming"), int64(0))
        with self.function.builder.if_else(streaming) as (past, through):
            with past:
                vectors.store(values, pointer, dtype, streaming=True)
            with through:
                vectors.store(values, pointer, dtype)

    def walk(self) -> Walk:
        """The walk that the kernel's arguments describe."""
        builder = self.function.builder
        return Walk(
            u=self.rows("u"),
            delta=self.rows("delta"),
            B=self.rows("B", by_channel=False, dtype="float32"),
            C=self.rows("C", by_channel=False, dtype="float32"),
            A=self.shifted("A", builder.mul(self.channel, self.read("state"))),
            D=self.shifted("D", self.channel),
            delta_bias=self.shifted("delta_bias", self.channel),
            delta_softplus=builder.icmp_unsigned("!=", self.read("delta_softplus"), int64(0)),
            length=self.read("length"),
            state=self.read("state"),
        )


class Tiles:
    """The parameters of a block of channels in scratch: `A * log2(e)` by state and lane, D and the bias by lane."""

    def __init__(self, function: TaskFunction, vectors: Vectors, walk: Walk, scratch: Scratch):
        self.function = function
        self.vectors = vectors
        self.walk = walk
        self._row = int64(vectors.width)
        self.A = self.take(scratch)
        self.D = scratch.take(vectors.width)
        self.bias = scratch.take(vectors.width)

    def take(self, scratch: Scratch) -> ir.Value:
        """A new tile."""
        return scratch.take(self.function.builder.mul(self.walk.state, self._row))

    def at(self, tile: ir.Value, state: ir.Value) -> ir.Value:
        """The address of a state's lanes."""
        return element(self.function.builder, tile, self.function.builder.mul(state, self._row))

    def fill(self) -> None:
        """Reads the parameters; lanes without a channel and parameters that are not given are 0."""
        vectors, log2_e = self.vectors, self.vectors.constant(LOG2_E)
        self.clear(self.A)
        self.read(self.A, self.walk.A)

        def scale(state: ir.Value) -> None:
            place = self.at(self.A, state)
            scaled = vectors.mul(vectors.load_tile(place), log2_e)
            vectors.store_tile(vectors.at_least(LEAST_DECAY, scaled), place)

        self.function.loop(self.walk.state, scale)
        for tile, parameter in ((self.D, self.walk.D), (self.bias, self.walk.delta_bias)):
            given = self.function.is_given(parameter)
            values = self.function.choose(given, lambda address=parameter: vectors.load(address), vectors.constant(0.0))
            vectors.store_tile(values, tile)

    def clear(self, tile: ir.Value) -> None:
        """Sets every lane of a tile to 0."""
        zero = self.vectors.constant(0.0)
        self.function.loop(self.walk.state, lambda state: self.vectors.store_tile(zero, self.at(tile, state)))

    def read(self, tile: ir.Value, source: ir.Value) -> None:
        """Copies `[channel][state]` from memory into a tile."""
        self._transpose(lambda inside, outside: (outside, inside), tile, source)

    def write(self, tile: ir.Value, target: ir.Value) -> None:
        """Copies a tile to `[channel][state]` in memory."""
        self._transpose(lambda inside, outside: (inside, outside), tile, target)

    def _transpose(self, order: Callable[..., tuple[ir.Value, ir.Value]], tile: ir.Value, memory: ir.Value) -> None:
        builder, state = self.function.builder, self.walk.state

        def channel(lane: ir.Value) -> None:
            inside = element(builder, tile, lane)
            outside = element(builder, memory, builder.mul(lane, state))

            def one(index: ir.Value) -> None:
                source, target = order(self.at(inside, index), element(builder, outside, index))
                builder.store(builder.load(source, typ=FLOAT), target)

            self.function.loop(state, one)

        self.function.loop(self.vectors.active, channel)

    def step_size(self, delta: Block) -> Block:
        """dt of a row of delta."""
        raw = self.vectors.add(delta, self.vectors.load_tile(self.bias))
        return self.function.choose(self.walk.delta_softplus, lambda: self.vectors.softplus(raw), raw)

    def step_size_and_slope(self, delta: Block) -> tuple[Block, Block]:
        """dt of a row of delta, and its derivative."""
        vectors = self.vectors
        raw = vectors.add(delta, vectors.load_tile(self.bias))

        def soft() -> Block:
            dt, slope = vectors.softplus_and_slope(raw)
            return dt + slope

        both = self.function.choose(self.walk.delta_softplus, soft, raw + vectors.constant(1.0))
        return both[: vectors.count], both[vectors.count :]
