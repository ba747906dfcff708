"""Arithmetic on blocks of channels as LLVM vector instructions.

A *block* is a tuple of float32 vectors of equal width; lane i of vector v is channel `v * lanes + i`. A recurrence
over four vectors gives the processor four independent dependency chains to overlap.

No fast-math flag is set: NaN and Inf propagate, and results are those of the operations as written.
"""

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from llvmlite import ir

from mambar.ops.llvm.machine import Machine

FLOAT = ir.FloatType()
HALF = ir.HalfType()
INT16 = ir.IntType(16)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
POINTER = ir.PointerType()

# llvmlite has no type hints, and pyright infers wrong types for its builder.
Builder = Any
Block = tuple[Any, ...]

ELEMENT_TYPES = {"float32": FLOAT, "bfloat16": INT16, "float16": INT16, "int64": INT64}
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8}

LOG2_E = 1.0 / math.log(2.0)

# 2**f on [-1/2, 1/2], leading coefficient first. The constant is exactly 1 and the error vanishes at f = 0: a decay
# close to 1 is applied at every position, and an error of 1e-7 there grew to 1e-5 in the output.
EXP2_COEFFICIENTS = (0.00132669753, 0.00966587849, 0.0555066541, 0.240223587, 0.693147063, 1.0)
# Adding 1.5 * 2**23 rounds to an integer and leaves it in the low bits.
ROUNDER = 12582912.0
BIAS = 127.0
# log1p(u) / u on [0, 1]; relative error 4e-8.
LOG1P_COEFFICIENTS = (
    *(0.00536482269, -0.030065788, 0.0792045295, -0.137538016, 0.191536546, -0.248571634, 0.33321324, -0.499996483),
    1.0,
)


def float32(number: float) -> float:
    """The nearest float32; LLVM rejects a constant that float32 cannot represent exactly."""
    return struct.unpack("f", struct.pack("f", number))[0]


def int64(number: ir.Value | int) -> ir.Value:
    """A 64-bit integer constant; a value stays itself."""
    return ir.Constant(INT64, number) if isinstance(number, int) else number


def declare(builder: Builder, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
    """The function of this name in the builder's module, declared at its first use."""
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


def element_pointer(builder: Builder, pointer: ir.Value, index: ir.Value | int, dtype: str = "float32") -> ir.Value:
    """A pointer to element `index` of an array."""
    return builder.gep(pointer, [int64(index)], source_etype=ELEMENT_TYPES[dtype])


class Vectors:
    """Emits operations on blocks of `count` vectors at the position of the builder.

    `active` (an i64 value) is the number of lanes that hold channels; the others load 0 and are never stored. None
    means all lanes. It needs `count` 1.
    """

    def __init__(self, builder: Builder, machine: Machine, count: int, active: ir.Value | None = None):
        self.builder = builder
        self.machine = machine
        self.count = count
        self.lanes = machine.lanes
        self.width = count * machine.lanes
        self.vector = ir.VectorType(FLOAT, self.lanes)
        self.integers = ir.VectorType(INT32, self.lanes)
        self._zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.active = int64(self.width) if active is None else active
        self.masked = active is not None
        self._mask: Any = None if active is None else self._lanes_below(active)
        # Arithmetic on blocks, lane by lane.
        self.add, self.sub = partial(self._each, builder.fadd), partial(self._each, builder.fsub)
        self.mul, self.div = partial(self._each, builder.fmul), partial(self._each, builder.fdiv)
        self.neg = partial(self._each, builder.fneg)

    # Constants and scalars

    def constant(self, number: float) -> Block:
        """The same number in every lane."""
        return (ir.Constant(self.vector, [float32(number)] * self.lanes),) * self.count

    def broadcast_load(self, pointer: ir.Value, index: ir.Value | int = 0) -> Block:
        """One float32 from memory in every lane."""
        scalar = self.builder.load(element_pointer(self.builder, pointer, index), typ=FLOAT)
        return self.splat(scalar)

    def splat(self, scalar: ir.Value) -> Block:
        """A float32 in every lane."""
        return (self._splat(scalar, self.vector),) * self.count

    # Arithmetic

    def fma(self, x: Block, y: Block, z: Block) -> Block:
        """x * y + z, rounded once if the processor has the instruction, else twice; never a library call."""
        return self._each(partial(self._intrinsic, "fmuladd"), x, y, z)

    def clamp_min(self, bound: float, x: Block) -> Block:
        """max(bound, x); NaN stays NaN. In this operand order it is one instruction."""
        return self._each(partial(self._extremum, ">"), self.constant(bound), x)

    def clamp_max(self, bound: float, x: Block) -> Block:
        """min(bound, x); NaN stays NaN."""
        return self._each(partial(self._extremum, "<"), self.constant(bound), x)

    def select(self, condition: ir.Value, x: Block, y: Block) -> Block:
        """x where the scalar condition holds, else y."""
        return self._each(lambda left, right: self.builder.select(condition, left, right), x, y)

    # Functions

    def exp2(self, x: Block, y: Block) -> Block:
        """2**(x y) within 3e-7: exactly 1 at 0, 0 or Inf out of range, NaN for NaN. |x y| below 1e13."""
        if self.machine.scale_and_estimate:
            rounder = self.constant(ROUNDER)
            rounded = self.sub(self.fma(x, y, rounder), rounder)
            fraction = self.fma(x, y, self.neg(rounded))
            return self._each(self._scale, self._polynomial(fraction, EXP2_COEFFICIENTS), rounded)
        # The rounder includes the exponent bias, so that the low bits are the exponent field of the power.
        rounder = self.constant(ROUNDER + BIAS)
        product = self.clamp_max(128.0, self.clamp_min(-127.0, self.mul(x, y)))
        shifted = self.add(product, rounder)
        fraction = self.sub(product, self.sub(shifted, rounder))
        return self.mul(self._polynomial(fraction, EXP2_COEFFICIENTS), self._each(self._power_of_two, shifted))

    def softplus(self, x: Block) -> Block:
        """log(1 + e**x), to float32 precision also for tiny values; x above 20."""
        return self._softplus(x, self._exp_neg_abs(x))

    def softplus_and_derivative(self, x: Block) -> tuple[Block, Block]:
        """The softplus and its derivative, the logistic function."""
        u, one, zero = self._exp_neg_abs(x), self.constant(1.0), self.constant(0.0)
        below = partial(self.builder.fcmp_ordered, "<")
        rising = self._each(
            lambda v, low, power, unit: self.builder.select(below(v, low), power, unit), x, zero, u, one
        )
        return self._softplus(x, u), self.mul(rising, self._reciprocal(self.add(one, u)))

    def _exp_neg_abs(self, x: Block) -> Block:
        """e**-|x|, at most 1."""
        magnitude = self._each(partial(self._intrinsic, "fabs"), x)
        return self.exp2(self.clamp_min(-100.0, self.neg(magnitude)), self.constant(LOG2_E))

    def _softplus(self, x: Block, u: Block) -> Block:
        return self.fma(u, self._polynomial(u, LOG1P_COEFFICIENTS), self.clamp_min(0.0, x))

    def silu(self, x: Block) -> Block:
        """x * sigmoid(x)."""
        return self.mul(x, self._sigmoid(x))

    def silu_and_derivative(self, x: Block) -> tuple[Block, Block]:
        """The SiLU and its derivative s (1 + x (1 - s)), with s = sigmoid(x)."""
        sigmoid = self._sigmoid(x)
        silu = self.mul(x, sigmoid)
        return silu, self.fma(silu, self.sub(self.constant(1.0), sigmoid), sigmoid)

    def _sigmoid(self, x: Block) -> Block:
        return self._reciprocal(self.add(self.constant(1.0), self.exp2(x, self.constant(-LOG2_E))))

    def _reciprocal(self, x: Block) -> Block:
        """1 / x for x from 1 to Inf, within two units in the last place."""
        one = self.constant(1.0)
        if not self.machine.scale_and_estimate:
            return self.div(one, x)
        # A division takes 16 cycles; an estimate of 14 bits and one Newton step are faster.
        estimate = self._each(self._estimate_reciprocal, x)
        correction = self.fma(self.neg(x), estimate, one)
        # At Inf the estimate is 0 and the correction NaN; 1 in its place keeps the result 0. Others are far below 1.
        correction = self._each(partial(self._extremum, "<"), correction, one)
        return self.fma(estimate, correction, estimate)

    def _extremum(self, order: str, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.fcmp_ordered(order, x, y), x, y)

    # Memory

    def load(self, pointer: ir.Value, dtype: str = "float32") -> Block:
        """Loads `width` adjacent elements as float32; lanes without a channel are 0."""
        addresses = self._addresses(pointer, dtype)
        return tuple(self._to_float32(self._masked_load(address, dtype), dtype) for address in addresses)

    def store(self, values: Block, pointer: ir.Value, dtype: str = "float32", *, streaming: bool = False) -> None:
        """Stores `width` adjacent elements, rounded to nearest even; lanes without a channel are not written.

        A streaming store bypasses the caches, for results larger than they are. It needs aligned vectors, and a fence
        before another thread reads.
        """
        for value, address in zip(values, self._addresses(pointer, dtype), strict=True):
            value = self._from_float32(value, dtype)
            if streaming:
                self.store_streaming(value, address, dtype)
            else:
                self._masked_store(value, address, dtype)

    def store_streaming(self, vector: Any, address: ir.Value, dtype: str = "float32") -> None:
        """Stores one vector and bypasses the caches."""
        store = self.builder.store(vector, address, align=self.lanes * ELEMENT_BYTES[dtype])
        store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(INT32, 1)]))

    def load_tile(self, pointer: ir.Value) -> Block:
        """Loads `width` float32 from scratch, which has space for every lane."""
        return tuple(self.builder.load(each, typ=self.vector, align=4) for each in self._addresses(pointer))

    def store_tile(self, values: Block, pointer: ir.Value) -> None:
        """Stores `width` float32 to scratch."""
        for value, address in zip(values, self._addresses(pointer), strict=True):
            self.builder.store(value, address, align=4)

    def _addresses(self, pointer: ir.Value, dtype: str = "float32") -> Iterator[ir.Value]:
        for index in range(self.count):
            yield element_pointer(self.builder, pointer, index * self.lanes, dtype)

    def prefetch(self, pointer: ir.Value, dtype: str = "float32") -> None:
        """Prefetches the cache lines of `width` elements; any address is allowed."""
        intrinsic = declare(self.builder, "llvm.prefetch.p0", ir.VoidType(), [POINTER, INT32, INT32, INT32])
        step = 64 // ELEMENT_BYTES[dtype]
        for start in range(0, self.width, step):
            address = element_pointer(self.builder, pointer, start, dtype)
            self.builder.call(intrinsic, [address, *(ir.Constant(INT32, hint) for hint in (0, 3, 1))])

    # Sums over lanes

    def dot(self, x: Block, y: Block) -> ir.Value:
        """The products x * y of the vectors of a block, summed to one vector."""
        total = self.builder.fmul(x[0], y[0])
        for left, right in zip(x[1:], y[1:], strict=True):
            total = self._intrinsic("fmuladd", left, right, total)
        return total

    def sum_lanes(self, vectors: Sequence[ir.Value]) -> ir.Value:
        """The sums over the lanes of `lanes` vectors, as one vector: lane i holds the sum of vector i.

        Each round adds pairs of vectors into one: half of the lanes keep their position, the others are exchanged.
        """
        level = list(vectors)
        distance = 1
        while len(level) > 1:
            level = [self._fold(even, odd, distance) for even, odd in zip(level[::2], level[1::2], strict=True)]
            distance *= 2
        return level[0]

    def _fold(self, even: ir.Value, odd: ir.Value, distance: int) -> ir.Value:
        upper = [bool(lane & distance) for lane in range(self.lanes)]
        stay = [lane + self.lanes * upper[lane] for lane in range(self.lanes)]
        cross = [(lane ^ distance) + self.lanes * upper[lane] for lane in range(self.lanes)]
        kept = self.builder.shuffle_vector(even, odd, ir.Constant(self.integers, stay))
        return self.builder.fadd(kept, self.builder.shuffle_vector(even, odd, ir.Constant(self.integers, cross)))

    # Operations on one vector

    def _each(self, operation: Callable[..., ir.Value], *blocks: Block) -> Block:
        return tuple(operation(*values) for values in zip(*blocks, strict=True))

    def _polynomial(self, x: Block, coefficients: Sequence[float]) -> Block:
        result = self.constant(coefficients[0])
        for coefficient in coefficients[1:]:
            result = self.fma(result, x, self.constant(coefficient))
        return result

    def _scale(self, x: Any, exponent: Any) -> Any:
        """x * 2**floor(exponent), 0 or Inf out of range; one instruction."""
        return self._avx512("mask.scalef", x, exponent, self._zero, ir.Constant(INT16, -1), ir.Constant(INT32, 4))

    def _estimate_reciprocal(self, x: Any) -> Any:
        return self._avx512("rcp14", x, self._zero, ir.Constant(INT16, -1))

    def _avx512(self, name: str, *operands: Any) -> Any:
        types = [value.type for value in operands]
        return self.builder.call(declare(self.builder, f"llvm.x86.avx512.{name}.ps.512", self.vector, types), operands)

    def _power_of_two(self, shifted: ir.Value) -> ir.Value:
        """2**k from k + BIAS + ROUNDER: the low bits of that number, shifted to the exponent field."""
        bits = self.builder.bitcast(shifted, self.integers)
        return self.builder.bitcast(self.builder.shl(bits, self._integer(23)), self.vector)

    def _integer(self, number: int) -> ir.Constant:
        return ir.Constant(self.integers, [number] * self.lanes)

    def _lanes_below(self, active: ir.Value) -> ir.Value:
        count = self._splat(self.builder.trunc(active, INT32), self.integers)
        return self.builder.icmp_unsigned("<", ir.Constant(self.integers, list(range(self.lanes))), count)

    def _splat(self, scalar: ir.Value, vector: ir.VectorType) -> ir.Value:
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
        return self.builder.shuffle_vector(first, undefined, self._integer(0))

    def _intrinsic(self, name: str, *operands: ir.Value) -> ir.Value:
        function = declare(self.builder, f"llvm.{name}.v{self.lanes}f32", self.vector, [self.vector] * len(operands))
        return self.builder.call(function, operands)

    def _masked_load(self, address: ir.Value, dtype: str) -> ir.Value:
        vector = ir.VectorType(ELEMENT_TYPES[dtype], self.lanes)
        size = ELEMENT_BYTES[dtype]
        if self._mask is None:
            return self.builder.load(address, typ=vector, align=size)
        name = f"llvm.masked.load.v{self.lanes}{ELEMENT_TYPES[dtype].intrinsic_name}.p0"
        function = declare(self.builder, name, vector, [POINTER, INT32, self._mask.type, vector])
        return self.builder.call(function, [address, ir.Constant(INT32, size), self._mask, ir.Constant(vector, None)])

    def _masked_store(self, value: Any, address: ir.Value, dtype: str) -> None:
        size = ELEMENT_BYTES[dtype]
        if self._mask is None:
            self.builder.store(value, address, align=size)
            return
        name = f"llvm.masked.store.v{self.lanes}{ELEMENT_TYPES[dtype].intrinsic_name}.p0"
        function = declare(self.builder, name, ir.VoidType(), [value.type, POINTER, INT32, self._mask.type])
        self.builder.call(function, [value, address, ir.Constant(INT32, size), self._mask])

    def _to_float32(self, value: ir.Value, dtype: str) -> ir.Value:
        if dtype == "float32":
            return value
        if dtype == "float16":
            halves = self.builder.bitcast(value, ir.VectorType(HALF, self.lanes))
            return self.builder.fpext(halves, self.vector)
        bits = self.builder.shl(self.builder.zext(value, self.integers), self._integer(16))
        return self.builder.bitcast(bits, self.vector)

    def _from_float32(self, value: ir.Value, dtype: str) -> ir.Value:
        if dtype == "float32":
            return value
        shorts = ir.VectorType(INT16, self.lanes)
        if dtype == "float16":
            return self.builder.bitcast(self.builder.fptrunc(value, ir.VectorType(HALF, self.lanes)), shorts)
        bits = self.builder.bitcast(value, self.integers)
        high = self.builder.lshr(bits, self._integer(16))
        odd = self.builder.and_(high, self._integer(1))
        nearest = self.builder.lshr(
            self.builder.add(bits, self.builder.add(odd, self._integer(0x7FFF))), self._integer(16)
        )
        not_a_number = self.builder.fcmp_unordered("uno", value, value)
        quiet = self.builder.or_(high, self._integer(0x40))
        return self.builder.trunc(self.builder.select(not_a_number, quiet, nearest), shorts)
