"""The LLVM kernel of the backward convolution: loops from the last step to the first.

Each step recomputes the gradient of its preactivation. A ring buffer holds the most recent ones, because each
contributes to the inputs of its step and of earlier steps.
"""

from collections.abc import Callable

from llvmlite import ir

from mambar.ops.causal_conv1d.llvm_forward import Convolution
from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import TaskTensors, strided
from mambar.ops.llvm.vectors import Block, Vectors, int64

VECTORS_PER_BLOCK = 4
PREFETCH_ROWS = 8

# As for the forward kernel. `parts` is (batch, taps + 1, d_inner): the gradients of the taps, then that of the bias.
# With `accumulate` the result is added to dx.
ARGUMENTS = (
    *("num_tasks", "length", "inner", "taps", "silu", "accumulate", "streaming"),
    *(*strided("x", "dy", "dx"), "weight", "bias", "parts"),
)


def scratch_floats(machine: Machine, taps: int) -> int:
    """Size of the scratch memory of one thread: taps and bias of a block, their gradients, the ring buffer."""
    return (3 * taps + 2) * VECTORS_PER_BLOCK * machine.lanes


def build_ir(machine: Machine, dtype: str) -> ir.Module:
    """The LLVM IR of the kernel for a dtype of the activations."""
    function = TaskFunction("llvm_backward", machine, ARGUMENTS)

    def task(vectors: Vectors, item: ir.Value, _: ir.Value, channel: ir.Value) -> None:
        tensors = TaskTensors(function=function, argument=function.integer, item=item, channel=channel, dtype=dtype)
        dx = tensors.rows("dx")

        def store_dx(values: Block, step: ir.Value) -> None:
            zero = vectors.constant(0.0)
            before = function.choose(tensors.is_set("accumulate"), lambda: vectors.load(dx.at(step), dtype), zero)
            tensors.store(vectors, vectors.add(values, before), dx.at(step), dtype)

        emit_backward(Convolution(tensors, vectors, Scratch(function)), store_dx)

    function.for_each_channel_block(VECTORS_PER_BLOCK, task)
    return function.module


def emit_backward(convolution: Convolution, store_dx: Callable[[Block, ir.Value], None]) -> None:
    """Emits the loop over a block: store_dx(dx, step) from the last step to the first, then the stores of the parts."""
    tensors, vectors, taps = convolution.tensors, convolution.vectors, convolution.taps
    function, builder, loop = tensors.function, tensors.builder, tensors.function.loop
    dy, length = tensors.rows("dy"), tensors.argument("length")
    dweight, dbias, ring = convolution.tile(taps), convolution.tile(1), convolution.tile(taps)
    dweight.clear()
    dbias.clear()

    def preactivation(step: ir.Value) -> Block:
        gradient = vectors.load(dy.at(step), dy.dtype)

        def through_silu() -> Block:
            return vectors.mul(gradient, vectors.silu_and_derivative(convolution.preactivation(step))[1])

        return function.choose(tensors.is_set("silu"), through_silu, gradient)

    def step(index: ir.Value) -> None:
        for rows in (convolution.x, dy):
            vectors.prefetch(rows.at(builder.sub(index, int64(PREFETCH_ROWS))), rows.dtype)
        gradient = preactivation(index)
        ring.store(gradient, builder.urem(index, taps))
        dbias.store(vectors.add(dbias.load(), gradient))

        def add(tap: ir.Value, x: Block, carried: Block) -> Block:
            dweight.store(vectors.fma(gradient, x, dweight.load(tap)), tap)
            return carried

        convolution.for_each_tap(index, add, ())

        def accumulate(later: ir.Value, dx: Block) -> tuple[Block]:
            tap = builder.sub(builder.sub(taps, int64(1)), later)
            slot = builder.urem(builder.add(index, later), taps)
            return (vectors.fma(ring.load(slot), convolution.weight.load(tap), dx),)

        left = builder.sub(length, index)
        num_taps = builder.select(builder.icmp_signed("<", left, taps), left, taps)
        store_dx(loop(num_taps, accumulate, vectors.constant(0.0))[0], index)

    loop(length, step, reverse=True)
    rows = tensors.item_rows("parts", builder.add(taps, int64(1)))
    loop(taps, lambda tap: vectors.store(dweight.load(tap), rows.at(tap)))
    vectors.store(dbias.load(), rows.at(taps))
