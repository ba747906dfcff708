"""The peak rate of state updates of one core: the arithmetic of the scan on registers and the first-level cache.

It bounds the speed of the scan on this processor and is measured in the same run as the scan. Softplus, gate and
memory traffic beyond 16 vectors are not included, so the scan cannot reach it.
"""

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import Tile
from mambar.ops.llvm.vectors import Block, Vectors, int64

VECTORS = 2
STATES = 16
ARGUMENTS: tuple[str, ...] = ("num_tasks", "rounds", "backward")


def build_ir(machine: Machine, dtype: str) -> ir.Module:
    """The LLVM IR of the kernel; `dtype` has no effect."""
    del dtype
    function = TaskFunction("roofline", machine, ARGUMENTS)
    vectors = function.vectors(VECTORS)

    def task(_: ir.Value) -> None:
        decays = Tile(function, vectors, Scratch(function), STATES)
        function.loop(STATES, lambda n: decays.store(vectors.constant(-0.3), n))
        with function.builder.if_else(function.is_set("backward")) as (gradient, forward):
            with gradient:
                _run(function, decays, 5)
            with forward:
                _run(function, decays, 2)

    function.for_each_task(task)
    return function.module


def _run(function: TaskFunction, decays: Tile, num_chains: int) -> None:
    vectors, builder = function.vectors(VECTORS), function.builder
    one = vectors.constant(0.5)

    def step(index: ir.Value, *chains: Block) -> list[Block]:
        A = decays.load(builder.and_(index, int64(STATES - 1)))
        return _backward(vectors, A, *chains) if num_chains == 5 else _forward(vectors, A, *chains)

    ends = function.loop(function.integer("rounds"), step, *(one for _ in range(num_chains)))
    for row, end in enumerate(ends):
        decays.store(end, row)


def _forward(vectors: Vectors, A: Block, h: Block, y: Block) -> list[Block]:
    """Decay, input, state and output: 12 vector operations if 2**k is one of them."""
    B, C, dt = (vectors.constant(value) for value in (0.4, 0.1, 0.7))
    h = vectors.fma(vectors.exp2(dt, A), h, vectors.mul(A, B))
    return [h, vectors.fma(h, C, y)]


def _backward(vectors: Vectors, A: Block, h: Block, y: Block, g: Block, grad_A: Block, sums: Block) -> list[Block]:
    """The forward step again, and its adjoint: seven more operations, and two for the sums over lanes."""
    B, C, dt = (vectors.constant(value) for value in (0.4, 0.1, 0.7))
    decay = vectors.exp2(dt, A)
    before, h = h, vectors.fma(decay, h, vectors.mul(A, B))
    y = vectors.fma(h, C, y)
    G = vectors.fma(A, C, g)
    sums = vectors.fma(h, A, vectors.fma(G, A, vectors.fma(G, B, sums)))
    g = vectors.mul(G, decay)
    grad_exponent = vectors.mul(g, before)
    return [h, y, g, vectors.fma(grad_exponent, dt, vectors.fma(grad_exponent, A, grad_A)), sums]
