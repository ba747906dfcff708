"""Addresses of a task's data: rows of activations in scan order, and tiles of parameters in scratch memory."""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.vectors import FLOAT, POINTER, Block, Builder, Vectors, element_pointer, int64


def strided(*names: str) -> tuple[str, ...]:
    """The names of the kernel arguments of activations: address, and strides over batch and time in elements.

    The address is 0 if a tensor is not given. In reverse, it is that of the last row and the stride over time is
    negative.
    """
    return tuple(f"{name}{part}" for name in names for part in ("", "_batch", "_time"))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of channels, for example those of one batch item: row k starts `k * stride` elements after the first."""

    builder: Builder
    first: ir.Value
    stride: ir.Value
    dtype: str = "float32"

    def at(self, row: ir.Value) -> ir.Value:
        return element_pointer(self.builder, self.first, self.builder.mul(row, self.stride), self.dtype)


@dataclass(frozen=True, kw_only=True)
class TaskTensors:
    """The tensors of a task, at its batch item and first channel; `argument` returns a kernel argument by name.

    The arguments set the direction of a scan: in reverse, the pointer to an activation is that of its last row, and
    its stride over time is negative.
    """

    function: TaskFunction
    argument: Callable[[str], ir.Value]
    item: ir.Value
    channel: ir.Value
    dtype: str

    @property
    def builder(self) -> Builder:
        return self.function.builder

    def pointer(self, name: str) -> ir.Value:
        """The pointer to a tensor; null if the tensor is not given."""
        return self.builder.inttoptr(self.argument(name), POINTER)

    def is_set(self, name: str) -> ir.Value:
        """True if an argument is not 0: the tensor is given, or the flag is set."""
        return self.builder.icmp_unsigned("!=", self.argument(name), int64(0))

    def offset_pointer(self, name: str, offset: ir.Value) -> ir.Value:
        """A pointer to an element of a float32 tensor; null if the tensor is not given."""
        address = self.pointer(name)
        return self.builder.select(self.is_set(name), element_pointer(self.builder, address, offset), address)

    def rows(self, name: str, *, by_channel: bool = True, dtype: str | None = None) -> Rows:
        """The item's rows of an activation, from the arguments `name`, `name_batch` and `name_time`."""
        dtype = dtype or self.dtype
        start = self.builder.mul(self.item, self.argument(f"{name}_batch"))
        if by_channel:
            start = self.builder.add(start, self.channel)
        first = element_pointer(self.builder, self.pointer(name), start, dtype)
        return Rows(builder=self.builder, first=first, stride=self.argument(f"{name}_time"), dtype=dtype)

    def item_rows(self, name: str, rows_per_item: ir.Value, first_row: ir.Value | int = 0) -> Rows:
        """The item's rows of a contiguous float32 tensor (batch, rows, inner)."""
        builder, inner = self.builder, self.argument("inner")
        row = builder.add(builder.mul(self.item, rows_per_item), int64(first_row))
        first = element_pointer(builder, self.pointer(name), builder.add(builder.mul(row, inner), self.channel))
        return Rows(builder=builder, first=first, stride=inner)

    def store(self, vectors: Vectors, values: Block, pointer: ir.Value, dtype: str = "float32") -> None:
        """Stores results; bypasses the caches if the argument `streaming` is set."""
        if vectors.masked:
            vectors.store(values, pointer, dtype)
            return
        with self.builder.if_else(self.is_set("streaming")) as (streamed, cached):
            with streamed:
                vectors.store(values, pointer, dtype, streaming=True)
            with cached:
                vectors.store(values, pointer, dtype)


class Tile:
    """A `[row][lane]` array in scratch, for parameters or states stored as `[channel][row]` in memory."""

    def __init__(self, function: TaskFunction, vectors: Vectors, scratch: Scratch, num_rows: ir.Value | int):
        self._function = function
        self._vectors = vectors
        self._num_rows = int64(num_rows)
        self._base = scratch.allocate(function.builder.mul(self._num_rows, int64(vectors.width)))

    def load(self, row: ir.Value | int = 0) -> Block:
        return self._vectors.load_tile(self._at(row))

    def store(self, values: Block, row: ir.Value | int = 0) -> None:
        self._vectors.store_tile(values, self._at(row))

    def clear(self) -> None:
        """Sets every lane to 0."""
        zero = self._vectors.constant(0.0)
        self._function.loop(self._num_rows, lambda row: self.store(zero, row))

    def load_transposed(self, source: ir.Value) -> None:
        """Copies `[channel][row]` from memory; lanes without a channel keep their values."""
        self._transpose(lambda inside, outside: (outside, inside), source)

    def store_transposed(self, target: ir.Value) -> None:
        """Copies to `[channel][row]` in memory."""
        self._transpose(lambda inside, outside: (inside, outside), target)

    def _at(self, row: ir.Value | int) -> ir.Value:
        builder = self._function.builder
        return element_pointer(builder, self._base, builder.mul(int64(row), int64(self._vectors.width)))

    def _transpose(self, order: Callable[..., tuple[ir.Value, ir.Value]], memory: ir.Value) -> None:
        builder = self._function.builder

        def channel(lane: ir.Value) -> None:
            outside = element_pointer(builder, memory, builder.mul(lane, self._num_rows))

            def one(row: ir.Value) -> None:
                source, target = order(
                    element_pointer(builder, self._at(row), lane), element_pointer(builder, outside, row)
                )
                builder.store(builder.load(source, typ=FLOAT), target)

            self._function.loop(self._num_rows, one)

        self._function.loop(self._vectors.active, channel)
