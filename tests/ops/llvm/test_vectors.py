import math

import pytest
import torch

from llvm_machines import MACHINES, every_machine
from mambar.ops.llvm.compiler import load, object_code
from mambar.ops.llvm.functions import TaskFunction
from mambar.ops.llvm.threads import run
from mambar.ops.llvm.vectors import element_pointer, int64

SOFTPLUS = torch.nn.functional.softplus
SILU = torch.nn.functional.silu


def silu_derivative(x):
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


# name -> (instructions, float64 reference). The relative error can grow with |x|: e**x is 2**(x log2(e)).
FUNCTIONS = {
    "exp2": (lambda v, x: v.exp2(x, v.constant(1.0)), torch.exp2),
    "softplus": (lambda v, x: v.softplus(x), SOFTPLUS),
    "softplus value": (lambda v, x: v.softplus_and_derivative(x)[0], SOFTPLUS),
    "softplus derivative": (lambda v, x: v.softplus_and_derivative(x)[1], torch.sigmoid),
    "silu": (lambda v, x: v.silu(x), SILU),
    "silu value": (lambda v, x: v.silu_and_derivative(x)[0], SILU),
}


def apply(machine, write, x, y, dtypes=("float32", "float32"), active=None):
    """Runs instructions on one vector: y = write(vectors, x)."""
    lanes = machine.lanes
    function = TaskFunction("apply", machine, ("num_tasks", "x", "y"))

    def task(index):
        vectors = function.vectors(1, None if active is None else int64(active))
        start = function.builder.mul(index, int64(lanes))
        values = vectors.load(element_pointer(function.builder, function.pointer("x"), start, dtypes[0]), dtypes[0])
        vectors.store(
            write(vectors, values),
            element_pointer(function.builder, function.pointer("y"), start, dtypes[1]),
            dtypes[1],
        )

    function.for_each_task(task)
    kernel = load(object_code(function.module, machine), machine, "apply")
    run(kernel, (-(-x.numel() // lanes), x.data_ptr(), y.data_ptr()), max_threads=1)
    return y


@every_machine
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_accurate_to_float32(machine, name):
    write, reference = FUNCTIONS[name]
    x = torch.cat([torch.linspace(-80, 80, 4000), torch.linspace(-1, 1, 2000), torch.linspace(-1e-4, 1e-4, 2000)])
    found = apply(MACHINES[machine], write, x, torch.empty_like(x)).double()
    right = reference(x.double())
    kept = right.abs() > 1.2e-38
    assert (((found - right) / right).abs() <= 3e-7 + 1e-7 * x.double().abs())[kept].all()


@every_machine
def test_the_derivative_of_silu_is_accurate(machine):
    x = torch.linspace(-80, 80, 4096)
    found = apply(MACHINES[machine], lambda v, x: v.silu_and_derivative(x)[1], x, torch.empty_like(x))
    torch.testing.assert_close(found.double(), silu_derivative(x.double()), rtol=0, atol=1e-6)


@every_machine
def test_exp2_is_exact_at_zero_and_accurate_near_it(machine):
    # A decay near 1 is applied at every position, so the error of its logarithm counts.
    x = torch.cat([torch.zeros(16), -torch.logspace(-6, -1, 4080)])
    found = apply(MACHINES[machine], FUNCTIONS["exp2"][0], x, torch.empty_like(x)).double()
    assert (found[:16] == 1).all()
    error = (found - torch.exp2(x.double())).abs()
    assert (error <= 3.1e-8 + 4e-7 * x.double().abs()).all()


@every_machine
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_nan_stays_nan(machine, name):
    bits = torch.tensor([0x7FC00000, 0x7FC00001, 0x7FFFFFFF, -1, -0x400000], dtype=torch.int32).repeat(16)[:64]
    found = apply(MACHINES[machine], FUNCTIONS[name][0], bits.view(torch.float32), torch.zeros(64))
    assert found.isnan().all()


@every_machine
def test_large_arguments_give_zero_or_the_bound(machine):
    x = torch.tensor([-1e30, -1e8, -6e4, -200.0, 6e4, 1e8, 200.0, 0.0]).repeat(8)
    softplus, gate = (apply(MACHINES[machine], FUNCTIONS[n][0], x, torch.empty(64))[:8] for n in ("softplus", "silu"))
    assert softplus.tolist() == [0, 0, 0, 0, 6e4, 1e8, 200, pytest.approx(math.log(2))]
    assert gate.tolist() == pytest.approx([0, 0, 0, 0, 6e4, 1e8, 200, 0])
    power = apply(MACHINES[machine], FUNCTIONS["exp2"][0], x.clamp(-1e8, 1e8), torch.empty(64))[:8]
    assert power.tolist() == [0, 0, 0, 0, math.inf, math.inf, math.inf, 1]


@every_machine
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_conversions_equal_those_of_torch(machine, dtype):
    name = str(dtype).removeprefix("torch.")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, generator=generator) * torch.logspace(-3, 4, 4096)
    x[:4] = torch.tensor([math.inf, -math.inf, 0.0, -0.0])
    narrow = apply(MACHINES[machine], lambda v, x: x, x, torch.empty(4096, dtype=dtype), ("float32", name))
    assert torch.equal(narrow, x.to(dtype))
    wide = apply(MACHINES[machine], lambda v, x: x, narrow, torch.empty(4096), (name, "float32"))
    assert torch.equal(wide, narrow.float())
    lost = torch.tensor([-1, 0x7F800001, 0x7FC00000, 0x7FFFFFFF] * 4, dtype=torch.int32).view(torch.float32)
    assert apply(MACHINES[machine], lambda v, x: x, lost, torch.zeros(16, dtype=dtype), ("float32", name)).isnan().all()


@every_machine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lanes_without_a_channel_read_zero_and_are_not_written(machine, dtype):
    lanes, kind = MACHINES[machine].lanes, getattr(torch, dtype)
    x = torch.ones(lanes, dtype=kind)
    y = torch.full((lanes,), 7.0, dtype=kind)
    apply(MACHINES[machine], lambda v, x: v.add(x, v.constant(1.0)), x, y, (dtype, dtype), active=3)
    assert y.tolist() == [2, 2, 2, *[7] * (lanes - 3)]


@every_machine
def test_sums_over_lanes_have_the_order_of_the_vectors(machine):
    lanes = MACHINES[machine].lanes
    rows = torch.randn(lanes, lanes, generator=torch.Generator().manual_seed(0))

    def write(vectors, x):
        builder = vectors.builder
        base = builder.inttoptr(int64(rows.data_ptr()), x[0].type.element.as_pointer())
        loads = [vectors.load(element_pointer(builder, base, row * lanes))[0] for row in range(lanes)]
        return (vectors.sum_lanes(loads),)

    found = apply(MACHINES[machine], write, torch.zeros(lanes), torch.empty(lanes))
    torch.testing.assert_close(found, rows.sum(1))
