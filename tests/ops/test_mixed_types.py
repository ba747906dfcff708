"""Each argument of each op in each type, on every backend: right numbers, or an error that names the argument."""

import pytest
import torch

from mambar.errors import BackendUnavailable
from mambar.ops import (
    ScanDirection,
    add_rms_norm,
    bidirectional_mix,
    causal_conv1d,
    rms_norm,
    selective_scan_with_state,
)
from mambar.ops.dispatch import backends
from op_inputs import assert_same, backend_cases, scan_inputs, to_double, with_gradients

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def direction(name, seed):
    params = {
        "conv_weight": normal(8, 4, seed=seed),
        "conv_bias": normal(8, seed=seed),
        "x_proj": normal(10, 8, seed=seed) / 3,
        "dt_proj": normal(8, 2, seed=seed),
        "dt_bias": normal(8, seed=seed) - 1,
        "A": -normal(8, 4, seed=seed).exp(),
        "D": normal(8, seed=seed),
    }
    return {f"{name}.{field}": tensor for field, tensor in params.items()}


INPUTS = {
    "selective_scan": scan_inputs(2, 11, 8, 4, dtype=torch.float64),
    "causal_conv1d": {"x": normal(2, 11, 8), "weight": normal(8, 4), "bias": normal(8)},
    "rms_norm": {"x": normal(6, 8), "weight": normal(8)},
    "add_rms_norm": {"x": normal(6, 8), "residual": normal(6, 8, seed=1), "weight": normal(8)},
    "bidirectional_mix": {
        "xz": normal(2, 11, 16),
        **direction("forward_params", 1),
        **direction("backward_params", 2),
    },
}


def table(op):
    return op.removeprefix("add_")


def call(op, backend):
    """The op as a function of tensors by name."""
    if op == "selective_scan":
        return lambda **t: selective_scan_with_state(**t, delta_softplus=True, backend=backend)
    if op == "bidirectional_mix":

        def mix(xz, **params):
            values = list(params.values())
            return bidirectional_mix(xz, ScanDirection(*values[:7]), ScanDirection(*values[7:]), backend=backend)

        return mix
    function = {"causal_conv1d": causal_conv1d, "rms_norm": rms_norm, "add_rms_norm": add_rms_norm}[op]
    return lambda **t: function(**t, backend=backend)


def on_every_backend(op):
    found = [pytest.param(op, "auto", "cpu", id=f"{op}-auto")]
    found += [
        pytest.param(op, *case.values, id=f"{op}-{case.id}", marks=case.marks) for case in backend_cases(table(op))
    ]
    return found


every_backend = pytest.mark.parametrize("op, backend, device", [case for op in INPUTS for case in on_every_backend(op)])


def takes(op, backend, dtype):
    return backend == "auto" or any(row.name == backend and dtype in row.dtypes for row in backends(table(op)))


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
@every_backend
def test_each_argument_in_each_type(op, backend, device, base):
    """One argument in another type than the rest, whose activations are `base` and parameters float32."""
    activations = ("u", "delta", "B", "C", "z", "x", "xz")
    for name in INPUTS[op]:
        for dtype in DTYPES:
            tensors = {n: t.to(device, base if n in activations else torch.float32) for n, t in INPUTS[op].items()}
            tensors[name] = tensors[name].to(dtype)
            if dtype == torch.float64 and not takes(op, backend, dtype):
                with pytest.raises(
                    BackendUnavailable,
                    match=f"backend '{backend}' cannot run: it takes .*not torch.float64, the type of {name};",
                ):
                    call(op, backend)(**tensors)
                continue
            found = with_gradients(call(op, backend), tensors)
            expected = with_gradients(call(op, "reference"), to_double(tensors))
            # The loosest type among the inputs decides; some outputs and gradients are computed more exactly.
            loosest = max((t.dtype for t in tensors.values()), key=lambda dtype: torch.finfo(dtype).eps)
            assert_same(found, expected, loosest, times=3)
            for n, tensor in tensors.items():
                assert found[f"gradient of {n}"].dtype == tensor.dtype, (name, dtype, n)
            assert found["output 0"].dtype == next(iter(tensors.values())).dtype, (name, dtype)


@every_backend
def test_float64_anywhere_is_computed_in_float64(op, backend, device):
    if not takes(op, backend, torch.float64):
        pytest.skip("refused, see above")
    for name in INPUTS[op]:
        tensors = {n: t.to(device, torch.float32) for n, t in INPUTS[op].items()}
        tensors[name] = tensors[name].double()
        found = with_gradients(call(op, backend), tensors)
        expected = with_gradients(call(op, "reference"), to_double(tensors))
        error = (found[f"gradient of {name}"].cpu() - expected[f"gradient of {name}"]).abs().max()
        assert error <= 1e-6 * expected[f"gradient of {name}"].abs().max(), name


@pytest.mark.wrong_shapes
@pytest.mark.parametrize("op", INPUTS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.complex64], ids=str)
def test_other_types_are_refused_by_the_name_of_the_argument(op, dtype):
    for name, tensor in INPUTS[op].items():
        with pytest.raises(TypeError, match=rf"^{name} has dtype {dtype}; use float32"):
            call(op, "auto")(**INPUTS[op] | {name: tensor.to(dtype)})


def test_an_integer_result_type_of_the_norm_is_refused():
    with pytest.raises(TypeError, match=r"^dtype=torch.int32 is not supported"):
        rms_norm(**INPUTS["rms_norm"], dtype=torch.int32)


@pytest.mark.parametrize("op", INPUTS)
def test_the_operator_itself_refuses_mixed_types_by_name(op, stub_kernels):
    arguments = {
        "selective_scan": lambda t: (*t, True, False, False, "stub"),
        "causal_conv1d": lambda t: (*t, True, False, "stub"),
        "rms_norm": lambda t: (t[0], None, t[1], 1e-5, torch.float32, "stub"),
        "add_rms_norm": lambda t: (*t, 1e-5, torch.float32, "stub"),
        "bidirectional_mix": lambda t: (*t, True, False, "stub"),
    }[op]
    operator = getattr(torch.ops.mambar, table(op))
    first = next(iter(INPUTS[op]))
    for name in INPUTS[op]:
        if name == first:
            continue
        tensors = {n: t.float() for n, t in INPUTS[op].items()}
        with pytest.raises(TypeError, match=f"^{name} has dtype torch.float64; a kernel reads torch.float32"):
            operator(*arguments(list((tensors | {name: tensors[name].double()}).values())))
