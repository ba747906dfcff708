"""The LLVM kernel of the forward convolution: channels are vector lanes, rows of the taps are in the L1 cache."""

from collections.abc import Callable

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import TaskTensors, Tile, strided
from mambar.ops.llvm.vectors import Block, Vectors, int64

VECTORS_PER_BLOCK = 4
PREFETCH_ROWS = 8

# The address of a bias that is not given is 0.
ARGUMENTS = ("num_tasks", "length", "inner", "taps", "silu", "streaming", *strided("x", "y"), "weight", "bias")


def scratch_floats(machine: Machine, taps: int) -> int:
    """Size of the scratch memory of one thread: the taps and the bias of a block."""
    return (taps + 1) * VECTORS_PER_BLOCK * machine.lanes


def build_ir(machine: Machine, dtype: str) -> ir.Module:
    """The LLVM IR of the kernel for a dtype of the activations."""
    function = TaskFunction("llvm_forward", machine, ARGUMENTS)

    def task(vectors: Vectors, item: ir.Value, _: ir.Value, channel: ir.Value) -> None:
        tensors = TaskTensors(function=function, argument=function.integer, item=item, channel=channel, dtype=dtype)
        silu = tensors.is_set("silu")
        emit_convolution(
            Convolution(tensors, vectors, Scratch(function)),
            lambda sums: function.choose(silu, lambda: vectors.silu(sums), sums),
        )

    function.for_each_channel_block(VECTORS_PER_BLOCK, task)
    return function.module


def emit_convolution(convolution: "Convolution", activation: Callable[[Block], Block]) -> None:
    """Emits the loop over all steps, which stores activation(sums) to y."""
    tensors, vectors = convolution.tensors, convolution.vectors
    y = tensors.rows("y")

    def step(index: ir.Value) -> None:
        vectors.prefetch(convolution.x.at(tensors.builder.add(index, int64(PREFETCH_ROWS))), tensors.dtype)
        tensors.store(vectors, activation(convolution.preactivation(index)), y.at(index), tensors.dtype)

    tensors.function.loop(tensors.argument("length"), step)


class Convolution:
    """The convolution of a block of channels, with taps and bias in scratch."""

    def __init__(self, tensors: TaskTensors, vectors: Vectors, scratch: Scratch):
        self.tensors = tensors
        self.vectors = vectors
        self.taps = tensors.argument("taps")
        self.x = tensors.rows("x")
        self._scratch = scratch
        self.weight, self.bias = self.tile(self.taps), self.tile(1)
        self.weight.clear()
        self.weight.load_transposed(tensors.offset_pointer("weight", tensors.builder.mul(tensors.channel, self.taps)))
        address = tensors.offset_pointer("bias", tensors.channel)
        given = tensors.is_set("bias")
        self.bias.store(tensors.function.choose(given, lambda: vectors.load(address), vectors.constant(0.0)))

    def tile(self, num_rows: ir.Value | int) -> Tile:
        """A new tile in scratch."""
        return Tile(self.tensors.function, self.vectors, self._scratch, num_rows)

    def preactivation(self, step: ir.Value) -> Block:
        """The sum over taps plus bias at a step."""
        return self.for_each_tap(
            step, lambda tap, x, sums: self.vectors.fma(x, self.weight.load(tap), sums), self.bias.load()
        )

    def for_each_tap(self, step: ir.Value, body: Callable[[ir.Value, Block, Block], Block], start: Block) -> Block:
        """Emits body(tap, x at that tap, carried) for the taps inside the sequence; returns the final carried block."""
        builder, vectors = self.tensors.builder, self.vectors
        oldest = builder.sub(step, builder.sub(self.taps, int64(1)))
        first = builder.select(builder.icmp_signed("<", oldest, int64(0)), builder.neg(oldest), int64(0))

        def one(tap: ir.Value, carried: Block) -> tuple[Block]:
            row = builder.add(oldest, tap)
            return (body(tap, vectors.load(self.x.at(row), self.x.dtype), carried),)

        return self.tensors.function.loop(self.taps, one, start, start=first)[0]
