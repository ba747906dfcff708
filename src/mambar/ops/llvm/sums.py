"""Sums parts in a fixed order, so that results do not depend on threads: out[i] = parts[0][i] + parts[1][i] + …"""

from llvmlite import ir

from mambar.ops.llvm.functions import TaskFunction
from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.vectors import Block, Vectors, element_pointer

VECTORS_PER_BLOCK = 4
ARGUMENTS: tuple[str, ...] = ("num_tasks", "inner", "num_parts", "parts", "out")


def build_ir(machine: Machine, dtype: str) -> ir.Module:
    """The LLVM IR of the kernel for a dtype of the sum; the parts are float32."""
    function = TaskFunction("sums", machine, ARGUMENTS)
    builder = function.builder
    parts, inner = function.pointer("parts"), function.integer("inner")

    def task(vectors: Vectors, _item: ir.Value, _block: ir.Value, first: ir.Value) -> None:
        def add(part: ir.Value, total: Block) -> tuple[Block]:
            row = element_pointer(builder, parts, builder.add(builder.mul(part, inner), first))
            return (vectors.add(total, vectors.load(row)),)

        total = vectors.load(element_pointer(builder, parts, first))
        total = function.loop(function.integer("num_parts"), add, total, start=1)[0]
        vectors.store(total, element_pointer(builder, function.pointer("out"), first, dtype), dtype)

    function.for_each_channel_block(VECTORS_PER_BLOCK, task)
    return function.module
