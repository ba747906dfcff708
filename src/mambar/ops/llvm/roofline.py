"""The most states one core can take a step with: the scan's arithmetic alone, operands in registers and nearest cache.

A floor for the time of the scan on this processor, measured in the same run as the scan itself. Softplus, gate and all
memory traffic beyond 16 vectors come on top, so the scan cannot reach it.
"""

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch, TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.memory_layout import Tile
from mambar.ops.llvm.vectors import Block, Vectors, int64

VECTORS = 2
STATES = 16
ARGUMENTS: tuple[str, ...] = ("num_tasks", "rounds", "backward")


def write(machine: Machine, dtype: str) -> ir.Module:
    """The module with the kernel (`dtype` plays no part)."""
    del dtype
    function = TaskFunction("roofline", machine, ARGUMENTS)
    vectors = function.vectors(VECTORS)

    def task(_: ir.Value) -> None:
        decays = Tile(function, vectors, Scratch(function), STATES)
        function.loop(STATES, lambda n: decays.store(vectors.constant(-0.3), n))
        with function.builder.if_else(function.flag("backward")) as (back, ahead):
            with back:
                _run(function, decays, 5)
            with ahead:
                _run(function, decays, 2)

    function.tasks(task)
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
    """Decay, what enters, the state, the output: 12 vector operations where 2**k is one."""
    B, C, dt = (vectors.constant(value) for value in (0.4, 0.1, 0.7))
    h = vectors.fma(vectors.exp2(dt, A), h, vectors.mul(A, B))
    return [h, vectors.fma(h, C, y)]


def _backward(vectors: Vectors, A: Block, h: Block, y: Block, g: Block, flow: Block, sums: Block) -> list[Block]:
    """The same once more, and the adjoint: seven further operations and two for the sums over lanes."""
    B, C, dt = (vectors.constant(value) for value in (0.4, 0.1, 0.7))
    decay = vectors.exp2(dt, A)
    before, h = h, vectors.fma(decay, h, vectors.mul(A, B))
    y = vectors.fma(h, C, y)
    G = vectors.fma(A, C, g)
    sums = vectors.fma(h, A, vectors.fma(G, A, vectors.fma(G, B, sums)))
    g = vectors.mul(G, decay)
    through = vectors.mul(g, before)
    return [h, y, g, vectors.fma(through, dt, vectors.fma(through, A, flow)), sums]
