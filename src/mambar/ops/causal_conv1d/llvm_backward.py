"""The gradients of the convolution as vector instructions: a walk from the last step to the first.

The gradient of the sum before the activation is made anew at each step; the last ones stay in a ring, as each reaches
the inputs of its step and of the steps before.
"""

from collections.abc import Callable

from llvmlite import ir

from mambar.ops.causal_conv1d.llvm_forward import Convolution
from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import Place
from mambar.ops.llvm.vectors import Block, Vectors, int64

VECTORS_PER_BLOCK = 4
ROWS_AHEAD = 8

# As for the forward kernel; `parts` is (batch, taps + 1, inner): the gradients of the taps, then that of the bias;
# `adds`: dx is added to what it holds.
ARGUMENTS = (
    *("num_tasks", "length", "inner", "taps", "silu", "adds", "streaming"),
    *("x", "x_batch", "x_time", "dy", "dy_batch", "dy_time", "dx", "dx_batch", "dx_time", "weight", "bias", "parts"),
)


def scratch_floats(machine: Machine, taps: int) -> int:
    """The scratch of one thread: the taps and the bias of a block, their gradients, the ring."""
    return (3 * taps + 2) * VECTORS_PER_BLOCK * machine.lanes


def write(machine: Machine, dtype: str) -> ir.Module:
    """The module with the kernel, for activations of one dtype."""
    function = TaskFunction("llvm_backward", machine, ARGUMENTS)

    def task(vectors: Vectors, item: ir.Value, _: ir.Value, channel: ir.Value) -> None:
        place = Place(function=function, read=function.integer, item=item, channel=channel, dtype=dtype)
        dx = place.rows("dx")

        def give(values: Block, step: ir.Value) -> None:
            zero = vectors.constant(0.0)
            before = function.choose(place.given("adds"), lambda: vectors.load(dx.at(step), dtype), zero)
            place.store(vectors, vectors.add(values, before), dx.at(step), dtype)

        walk_backward(Convolution(place, vectors, Scratch(function)), give)

    function.channel_tasks(VECTORS_PER_BLOCK, task)
    return function.module


def walk_backward(convolution: Convolution, give: Callable[[Block, ir.Value], None]) -> None:
    """Writes the walk of a block: calls give(dx, step) from the last step to the first, then writes the parts."""
    place, vectors, taps = convolution.place, convolution.vectors, convolution.taps
    function, builder, loop = place.function, place.builder, place.function.loop
    dy, length = place.rows("dy"), place.read("length")
    dweight, dbias, ring = convolution.tile(taps), convolution.tile(1), convolution.tile(taps)
    dweight.clear()
    dbias.clear()

    def before_activation(step: ir.Value) -> Block:
        gradient = vectors.load(dy.at(step), dy.dtype)

        def through_silu() -> Block:
            return vectors.mul(gradient, vectors.silu_and_slope(convolution.before_activation(step))[1])

        return function.choose(place.given("silu"), through_silu, gradient)

    def step(index: ir.Value) -> None:
        for rows in (convolution.x, dy):
            vectors.prefetch(rows.at(builder.sub(index, int64(ROWS_AHEAD))), rows.dtype)
        gradient = before_activation(index)
        ring.store(gradient, builder.urem(index, taps))
        dbias.store(vectors.add(dbias.load(), gradient))

        def add(tap: ir.Value, x: Block, carried: Block) -> Block:
            dweight.store(vectors.fma(gradient, x, dweight.load(tap)), tap)
            return carried

        convolution.each_tap(index, add, ())

        def spread(later: ir.Value, dx: Block) -> tuple[Block]:
            tap = builder.sub(builder.sub(taps, int64(1)), later)
            slot = builder.urem(builder.add(index, later), taps)
            return (vectors.fma(ring.load(slot), convolution.weight.load(tap), dx),)

        left = builder.sub(length, index)
        reach = builder.select(builder.icmp_signed("<", left, taps), left, taps)
        give(loop(reach, spread, vectors.constant(0.0))[0], index)

    loop(length, step, backwards=True)
    rows = place.item_rows("parts", builder.add(taps, int64(1)))
    loop(taps, lambda tap: vectors.store(dweight.load(tap), rows.at(tap)))
    vectors.store(dbias.load(), rows.at(taps))
