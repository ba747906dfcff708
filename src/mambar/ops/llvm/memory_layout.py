"""Where a task reads and writes: rows of activations in the order of a walk, tiles of parameters in scratch."""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.vectors import FLOAT, POINTER, Block, Builder, Vectors, element, int64


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of channels, for example one batch item's: row k starts `k * stride` elements after the first."""

    builder: Builder
    first: ir.Value
    stride: ir.Value
    dtype: str = "float32"

    def at(self, row: ir.Value) -> ir.Value:
        """The address of a row."""
        return element(self.builder, self.first, self.builder.mul(row, self.stride), self.dtype)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A task's batch item and first channel; `read` gives an argument of the kernel by name.

    The direction of a walk is a matter of the arguments: backwards in time, an activation's address is that of its
    last row, and its stride over time is negative.
    """

    function: TaskFunction
    read: Callable[[str], ir.Value]
    item: ir.Value
    channel: ir.Value
    dtype: str

    @property
    def builder(self) -> Builder:
        """The function's builder."""
        return self.function.builder

    def address(self, name: str) -> ir.Value:
        """A tensor's address as given; null where it is not."""
        return self.builder.inttoptr(self.read(name), POINTER)

    def given(self, name: str) -> ir.Value:
        """Whether an argument is not 0: a tensor that is given, a flag that is set."""
        return self.builder.icmp_unsigned("!=", self.read(name), int64(0))

    def shifted(self, name: str, offset: ir.Value) -> ir.Value:
        """The address of an element of a float32 tensor; null where the tensor is not given."""
        address = self.address(name)
        return self.builder.select(self.given(name), element(self.builder, address, offset), address)

    def rows(self, name: str, *, by_channel: bool = True, dtype: str | None = None) -> Rows:
        """The item's rows of an activation, given as `name`, `name_batch` and `name_time`."""
        dtype = dtype or self.dtype
        start = self.builder.mul(self.item, self.read(f"{name}_batch"))
        if by_channel:
            start = self.builder.add(start, self.channel)
        first = element(self.builder, self.address(name), start, dtype)
        return Rows(builder=self.builder, first=first, stride=self.read(f"{name}_time"), dtype=dtype)

    def item_rows(self, name: str, rows_per_item: ir.Value, first_row: ir.Value | int = 0) -> Rows:
        """The item's rows of a contiguous float32 tensor (batch, rows, inner)."""
        builder, inner = self.builder, self.read("inner")
        first_row = int64(first_row) if isinstance(first_row, int) else first_row
        row = builder.add(builder.mul(self.item, rows_per_item), first_row)
        first = element(builder, self.address(name), builder.add(builder.mul(row, inner), self.channel))
        return Rows(builder=builder, first=first, stride=inner)

    def store(self, vectors: Vectors, values: Block, pointer: ir.Value, dtype: str = "float32") -> None:
        """Writes results, past the caches where the argument `streaming` says so."""
        if vectors.masked:
            vectors.store(values, pointer, dtype)
            return
        with self.builder.if_else(self.given("streaming")) as (past, through):
            with past:
                vectors.store(values, pointer, dtype, streaming=True)
            with through:
                vectors.store(values, pointer, dtype)


class Tile:
    """Scratch laid out `[row][lane]`, for parameters or states that lie as `[channel][row]` in memory."""

    def __init__(self, function: TaskFunction, vectors: Vectors, scratch: Scratch, num_rows: ir.Value | int):
        self._function = function
        self._vectors = vectors
        self._num_rows = int64(num_rows) if isinstance(num_rows, int) else num_rows
        self._base = scratch.take(function.builder.mul(self._num_rows, int64(vectors.width)))

    def load(self, row: ir.Value | int = 0) -> Block:
        """A row's lanes."""
        return self._vectors.load_tile(self._at(row))

    def store(self, values: Block, row: ir.Value | int = 0) -> None:
        """Sets a row's lanes."""
        self._vectors.store_tile(values, self._at(row))

    def clear(self) -> None:
        """Sets every lane to 0."""
        zero = self._vectors.constant(0.0)
        self._function.loop(self._num_rows, lambda row: self.store(zero, row))

    def read(self, source: ir.Value) -> None:
        """Copies `[channel][row]` from memory; lanes without a channel keep what they hold."""
        self._transpose(lambda inside, outside: (outside, inside), source)

    def write(self, target: ir.Value) -> None:
        """Copies to `[channel][row]` in memory."""
        self._transpose(lambda inside, outside: (inside, outside), target)

    def _at(self, row: ir.Value | int) -> ir.Value:
        builder = self._function.builder
        row = int64(row) if isinstance(row, int) else row
        return element(builder, self._base, builder.mul(row, int64(self._vectors.width)))

    def _transpose(self, order: Callable[..., tuple[ir.Value, ir.Value]], memory: ir.Value) -> None:
        builder = self._function.builder

        def channel(lane: ir.Value) -> None:
            outside = element(builder, memory, builder.mul(lane, self._num_rows))

            def one(row: ir.Value) -> None:
                source, target = order(element(builder, self._at(row), lane), element(builder, outside, row))
                builder.store(builder.load(source, typ=FLOAT), target)

            self._function.loop(self._num_rows, one)

        self._function.loop(self._vectors.active, channel)
