"""The forward convolution as vector instructions: lanes are channels, the taps' rows come from the nearest cache."""

from collections.abc import Callable

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import Place, Tile
from mambar.ops.llvm.vectors import Block, Vectors, int64

VECTORS_PER_BLOCK = 4
ROWS_AHEAD = 8

# Addresses are 0 where a tensor is not given; strides count elements. A walk's first row is the last in memory, and
# its strides over time are negative, where time is mirrored.
ARGUMENTS = (
    *("num_tasks", "length", "inner", "taps", "silu", "streaming"),
    *("x", "x_batch", "x_time", "y", "y_batch", "y_time", "weight", "bias"),
)


def scratch_floats(machine: Machine, taps: int) -> int:
    """The scratch of one thread: the taps and the bias of a block."""
    return (taps + 1) * VECTORS_PER_BLOCK * machine.lanes


def write(machine: Machine, dtype: str) -> ir.Module:
    """The module with the kernel, for activations of one dtype."""
    function = TaskFunction("llvm_forward", machine, ARGUMENTS)

    def task(vectors: Vectors, item: ir.Value, _: ir.Value, channel: ir.Value) -> None:
        place = Place(function=function, read=function.integer, item=item, channel=channel, dtype=dtype)
        convolution = Convolution(place, vectors, Scratch(function))
        y = place.rows("y")

        def step(index: ir.Value) -> None:
            vectors.prefetch(convolution.x.at(place.builder.add(index, int64(ROWS_AHEAD))), dtype)
            sums = convolution.before_activation(index)
            values = function.choose(place.given("silu"), lambda: vectors.silu(sums), sums)
            place.store(vectors, values, y.at(index), dtype)

        function.loop(place.read("length"), step)

    function.channel_tasks(VECTORS_PER_BLOCK, task)
    return function.module


class Convolution:
    """A block's taps and bias in scratch, and what they make of its rows."""

    def __init__(self, place: Place, vectors: Vectors, scratch: Scratch):
        self.place = place
        self.vectors = vectors
        self.taps = place.read("taps")
        self.x = place.rows("x")
        self._scratch = scratch
        self.weight, self.bias = self.tile(self.taps), self.tile(1)
        self.weight.clear()
        self.weight.read(place.shifted("weight", place.builder.mul(place.channel, self.taps)))
        address = place.shifted("bias", place.channel)
        given = place.given("bias")
        self.bias.store(place.function.choose(given, lambda: vectors.load(address), vectors.constant(0.0)))

    def tile(self, num_rows: ir.Value | int) -> Tile:
        """A new tile in the task's scratch."""
        return Tile(self.place.function, self.vectors, self._scratch, num_rows)

    def before_activation(self, step: ir.Value) -> Block:
        """The sum over taps and the bias, at a step of the walk."""
        return self.each_tap(
            step, lambda tap, x, sums: self.vectors.fma(x, self.weight.load(tap), sums), self.bias.load()
        )

    def each_tap(self, step: ir.Value, body: Callable[[ir.Value, Block, Block], Block], start: Block) -> Block:
        """body(tap, x at that tap, carried) over the taps that do not reach before the sequence."""
        builder, vectors = self.place.builder, self.vectors
        oldest = builder.sub(step, builder.sub(self.taps, int64(1)))
        first = builder.select(builder.icmp_signed("<", oldest, int64(0)), builder.neg(oldest), int64(0))

        def one(tap: ir.Value, carried: Block) -> tuple[Block]:
            row = builder.add(oldest, tap)
            return (body(tap, vectors.load(self.x.at(row), self.x.dtype), carried),)

        return self.place.function.loop(self.taps, one, start, start=first)[0]
