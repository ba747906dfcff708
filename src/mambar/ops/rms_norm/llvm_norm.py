"""The LLVM kernel of the RMS norm in float32, alone or after a residual sum: a task normalizes some rows."""

from typing import Any

from llvmlite import ir

from mambar.ops.llvm.functions import TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.vectors import FLOAT, INT32, Block, Builder, Vectors, declare, element_pointer, int64

ROWS_PER_TASK = 16

# Matrices are contiguous. `eps` has the bits of a float32. Without a residual its address and that of total are 0.
ARGUMENTS: tuple[str, ...] = ("num_tasks", "rows", "dim", "eps", "x", "residual", "weight", "total", "normed")


def build_ir(machine: Machine, dtype: str) -> ir.Module:
    """The LLVM IR of the kernel; `dtype` is float32."""
    del dtype
    function = TaskFunction("llvm_norm", machine, ARGUMENTS)
    builder, dim = function.builder, function.integer("dim")
    whole = builder.mul(builder.udiv(dim, int64(machine.lanes)), int64(machine.lanes))
    left = builder.sub(dim, whole)
    eps = builder.bitcast(builder.trunc(function.integer("eps"), INT32), FLOAT)

    def for_each_vector(body, *carried: Block) -> tuple[Block, ...]:
        """body(vectors, column, *carried) for whole vectors, then for the rest of the row."""
        vectors, rest = function.vectors(1), function.vectors(1, left)
        carried = function.loop(whole, lambda column, *c: body(vectors, column, *c), *carried, step=machine.lanes)
        return tuple(body(rest, whole, *carried) or ())

    def normalize(row: ir.Value) -> None:
        start = builder.mul(row, dim)

        def at(name: str, column: ir.Value) -> ir.Value:
            return element_pointer(builder, function.pointer(name), builder.add(start, column))

        def add_squares(vectors: Vectors, column: ir.Value, sums: Block) -> tuple[Block]:
            x = vectors.load(at("x", column))

            def with_residual() -> Block:
                total = vectors.add(x, vectors.load(at("residual", column)))
                vectors.store(total, at("total", column))
                return total

            values = function.choose(function.is_set("residual"), with_residual, x)
            return (vectors.fma(values, values, sums),)

        (sums,) = for_each_vector(add_squares, function.vectors(1).constant(0.0))
        mean = builder.fdiv(_sum_of_lanes(builder, sums[0]), builder.sitofp(dim, FLOAT))
        root = builder.call(declare(builder, "llvm.sqrt.f32", FLOAT, [FLOAT]), [builder.fadd(mean, eps)])
        inverse = builder.fdiv(ir.Constant(FLOAT, 1.0), root)
        source = builder.select(function.is_set("residual"), at("total", int64(0)), at("x", int64(0)))

        def scale(vectors: Vectors, column: ir.Value) -> None:
            values = vectors.mul(vectors.load(element_pointer(builder, source, column)), vectors.splat(inverse))
            weight = vectors.load(element_pointer(builder, function.pointer("weight"), column))
            vectors.store(vectors.mul(values, weight), at("normed", column))

        for_each_vector(scale)

    def task(index: ir.Value) -> None:
        first = builder.mul(index, int64(ROWS_PER_TASK))
        end = builder.add(first, int64(ROWS_PER_TASK))
        rows = function.integer("rows")
        function.loop(builder.select(builder.icmp_signed("<", end, rows), end, rows), normalize, start=first)

    function.for_each_task(task)
    return function.module


def _sum_of_lanes(builder: Builder, vector: Any) -> ir.Value:
    """The sum of the lanes, by halves: the same order on every call."""
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    reduce = declare(builder, name, FLOAT, [FLOAT, vector.type])
    return builder.call(reduce, [ir.Constant(FLOAT, 0.0), vector], fastmath=["reassoc"])
