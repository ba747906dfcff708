"""Builds the LLVM function of a kernel, which takes tasks from a shared counter until none is left.

`void name(int64 *call)`: the array starts with the next task, the next thread, the address of the scratch memory and
its bytes per thread. All pointers, sizes and strides follow in the order of the kernel's argument names; the first is
always `num_tasks`. Several threads can run the function with the same array. Results do not depend on which thread runs
which task.
"""

from collections.abc import Callable, Sequence

from llvmlite import ir

from mambar.ops.llvm.machine import Machine
from mambar.ops.llvm.vectors import INT32, INT64, POINTER, Block, Builder, Vectors, declare, element_pointer, int64

X86 = ("x86_64", "i686")
ENTRY_TYPE = ir.FunctionType(ir.VoidType(), [POINTER])
TASKS_TYPE = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER])


def num_channel_blocks(machine: Machine, inner: int, vectors_per_block: int) -> int:
    """The number of tasks that `TaskFunction.for_each_channel_block` makes of the channels of a batch item."""
    full, left = divmod(inner, vectors_per_block * machine.lanes)
    return full + -(-left // machine.lanes)


class TaskFunction:
    """Builder of one kernel: arguments, loops and tasks."""

    def __init__(self, name: str, machine: Machine, arguments: Sequence[str]):
        self.module = ir.Module(name)
        self.module.triple = machine.triple
        self.machine = machine
        function = ir.Function(self.module, TASKS_TYPE, f"{name}_tasks")
        function.linkage = "internal"
        for argument in function.args:
            argument.add_attribute("noalias")
        _add_entry(function, name)
        self.builder: Builder = ir.IRBuilder(function.append_basic_block("entry"))
        self._arguments, self._next_task, self.scratch = function.args
        self._values = {
            argument: self.builder.load(element_pointer(self.builder, self._arguments, index, "int64"), typ=INT64)
            for index, argument in enumerate(arguments)
        }

    def integer(self, name: str) -> ir.Value:
        """An argument as a 64-bit integer."""
        return self._values[name]

    def pointer(self, name: str) -> ir.Value:
        """An argument as a pointer."""
        return self.builder.inttoptr(self._values[name], POINTER)

    def is_set(self, name: str) -> ir.Value:
        """Whether an argument is not 0."""
        return self.builder.icmp_unsigned("!=", self._values[name], int64(0))

    def vectors(self, count: int, active: ir.Value | None = None) -> Vectors:
        """The arithmetic on blocks of `count` vectors in this function."""
        return Vectors(self.builder, self.machine, count, active)

    def for_each_task(self, body: Callable[[ir.Value], None]) -> None:
        """Emits a loop that calls body(task) for tasks of the shared counter, then ends the function.

        Denormal numbers count as zero inside the loop: arithmetic on a decayed state would otherwise be a hundred
        times slower.
        """
        restore = flush_denormals(self.builder, self.machine)
        head, work, end = (self.builder.append_basic_block(name) for name in ("next", "task", "end"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        task = self.builder.atomic_rmw("add", self._next_task, int64(1), "monotonic")
        self.builder.cbranch(self.builder.icmp_signed("<", task, self.integer("num_tasks")), work, end)
        self.builder.position_at_end(work)
        body(task)
        self.builder.branch(head)
        self.builder.position_at_end(end)
        if self.machine.family in X86:
            self.builder.call(declare(self.builder, "llvm.x86.sse.sfence", ir.VoidType(), []), [])
        restore()
        self.builder.ret_void()

    def for_each_channel_block(
        self, vectors_per_block: int, body: Callable[[Vectors, ir.Value, ir.Value, ir.Value], None]
    ) -> None:
        """Emits tasks over (batch item, block of channels): body(vectors, item, block, first channel).

        Needs the argument `inner`, the number of channels. Full blocks come first; single vectors cover the remaining
        channels, the last one with unused lanes. With an argument `blocks_per_task` a task processes that many blocks
        of an item in sequence.
        """
        builder = self.builder
        wide = self.vectors(vectors_per_block)
        full = builder.udiv(self.integer("inner"), int64(wide.width))
        first_left = builder.mul(full, int64(wide.width))
        left = builder.sub(self.integer("inner"), first_left)
        lanes = int64(self.machine.lanes)
        blocks = builder.add(full, builder.udiv(builder.add(left, int64(self.machine.lanes - 1)), lanes))

        def block_of(item: ir.Value, block: ir.Value) -> None:
            with builder.if_else(builder.icmp_unsigned("<", block, full)) as (then, otherwise):
                with then:
                    body(wide, item, block, builder.mul(block, int64(wide.width)))
                with otherwise:
                    offset = builder.mul(builder.sub(block, full), lanes)
                    remaining = builder.sub(left, offset)
                    active = builder.select(builder.icmp_unsigned("<", remaining, lanes), remaining, lanes)
                    body(self.vectors(1, active), item, block, builder.add(first_left, offset))

        def task(index: ir.Value) -> None:
            if "blocks_per_task" not in self._values:
                block_of(builder.udiv(index, blocks), builder.urem(index, blocks))
                return
            size = self.integer("blocks_per_task")
            groups = builder.udiv(builder.add(blocks, builder.sub(size, int64(1))), size)
            item, group = builder.udiv(index, groups), builder.urem(index, groups)
            first = builder.mul(group, size)
            end = builder.add(first, size)
            end = builder.select(builder.icmp_unsigned("<", end, blocks), end, blocks)
            self.loop(end, lambda block: block_of(item, block), start=first)

        self.for_each_task(task)

    def loop(
        self,
        count: ir.Value | int,
        body: Callable[..., Sequence[Block] | None],
        *carried: Block,
        start: ir.Value | int = 0,
        step: int = 1,
        reverse: bool = False,
    ) -> tuple[Block, ...]:
        """Emits body(index, *carried) for index in range(start, count, step); returns the final carried blocks.

        `reverse` counts from count - 1 down to 0; it needs start 0 and step 1.
        """
        builder = self.builder
        count, before = int64(count), builder.block
        head, inside, after = (builder.append_basic_block(name) for name in ("loop", "body", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        counter = builder.phi(INT64)
        counter.add_incoming(int64(start), before)
        phis = []
        for block in carried:
            phis.append(tuple(builder.phi(value.type) for value in block))
            for phi, value in zip(phis[-1], block, strict=True):
                phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", counter, count), inside, after)
        builder.position_at_end(inside)
        index = builder.sub(builder.sub(count, int64(1)), counter) if reverse else counter
        results = body(index, *phis) or ()
        counter.add_incoming(builder.add(counter, int64(step)), builder.block)
        for block, phi_block in zip(results, phis, strict=True):
            for value, phi in zip(block, phi_block, strict=True):
                phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return tuple(phis)

    def choose(self, condition: ir.Value, when: Callable[[], Block], otherwise: Block) -> Block:
        """when() if the scalar condition is true, else the given block; when() is not executed if it is false."""
        before = self.builder.block
        with self.builder.if_then(condition):
            values = when()
            inside = self.builder.block
        merged = []
        for value, other in zip(values, otherwise, strict=True):
            phi = self.builder.phi(value.type)
            phi.add_incoming(value, inside)
            phi.add_incoming(other, before)
            merged.append(phi)
        return tuple(merged)


def _add_entry(tasks: ir.Function, name: str) -> None:
    """Adds the function `name(call)`, which gives this thread its scratch memory and runs tasks(arguments, …)."""
    function = ir.Function(tasks.module, ENTRY_TYPE, name)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    next_task = function.args[0]
    next_thread, scratch, stride, arguments = (
        element_pointer(builder, next_task, index, "int64") for index in range(1, 5)
    )
    thread = builder.atomic_rmw("add", next_thread, int64(1), "monotonic")
    offset = builder.mul(thread, builder.load(stride, typ=INT64))
    address = builder.inttoptr(builder.add(builder.load(scratch, typ=INT64), offset), POINTER)
    builder.call(tasks, [arguments, next_task, address])
    builder.ret_void()


class Scratch:
    """Allocator for the scratch memory of a task, in multiples of 64 bytes."""

    def __init__(self, function: TaskFunction):
        self._builder = function.builder
        self._base = function.scratch
        self._used: ir.Value = int64(0)

    def allocate(self, num_floats: ir.Value | int) -> ir.Value:
        """A pointer to `num_floats` float32, a multiple of 16."""
        address = element_pointer(self._builder, self._base, self._used)
        self._used = self._builder.add(self._used, int64(num_floats))
        return address


def flush_denormals(builder: Builder, machine: Machine) -> Callable[[], None]:
    """Emits code that makes this thread treat denormals as zero; returns a function that emits the restore."""
    if machine.family in X86:
        saved, changed = builder.alloca(INT32), builder.alloca(INT32)
        load = declare(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [POINTER])
        builder.call(declare(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [POINTER]), [saved])
        # Bit 15 flushes results to zero; bit 6 treats operands as zero.
        builder.store(builder.or_(builder.load(saved, typ=INT32), ir.Constant(INT32, 0x8040)), changed)
        builder.call(load, [changed])
        return lambda: builder.call(load, [saved]) and None
    if machine.family == "aarch64":
        read = declare(builder, "llvm.aarch64.get.fpcr", INT64, [])
        write = declare(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), [INT64])
        saved = builder.call(read, [])
        # Bit 24 (FZ) flushes operands and results to zero.
        builder.call(write, [builder.or_(saved, int64(1 << 24))])
        return lambda: builder.call(write, [saved]) and None
    return lambda: None
