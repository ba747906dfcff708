"""Every backend of the convolution against the float64 reference, and the promises of the interface."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden_cases import assert_near, cases
from mambar.ops import causal_conv1d, use_backend
from op_inputs import (
    TOLERANCES,
    assert_same,
    backend_cases,
    relative_error,
    to_double,
    with_gradients,
    without_shape_hook,
    without_short_sums,
)

EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}


def inputs(batch=2, length=9, d_inner=5, d_conv=4, *, dtype=torch.float32, device="cpu", bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "x": draw(batch, length, d_inner).to(device, dtype),
        "weight": draw(d_inner, d_conv).to(device, wide),
        "bias": draw(d_inner).to(device, wide) if bias else None,
    }


def conv_with(backend, **options):
    return lambda **tensors: causal_conv1d(**tensors, backend=backend, **options)


def assert_right(tensors, backend, dtype, **options):
    found = with_gradients(conv_with(backend, **options), tensors)
    assert_same(found, with_gradients(conv_with("reference", **options), to_double(tensors)), dtype)


@pytest.mark.parametrize("case", cases("causal_conv1d"), ids=str)
@pytest.mark.parametrize(
    "dtype, backend, device",
    [
        pytest.param(dtype, *case.values, id=f"{dtype}-{case.id}".removeprefix("torch."), marks=case.marks)
        for dtype in EXACT
        for case in backend_cases("causal_conv1d", dtype)
    ],
)
def test_golden_values_of_the_released_code(case, dtype, backend, device):
    tensors = {name: case[name].to(device, dtype).clone() for name in ("x", "weight", "bias") if name in case}
    tensors["x"] = tensors["x"].transpose(1, 2)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y = causal_conv1d(**leaves, activation="silu" if case.config["silu"] else None, backend=backend)
    (y * case["loss_weight"].transpose(1, 2).to(device, dtype)).sum().backward()
    assert_near(y.transpose(1, 2).cpu(), case["out"], EXACT[dtype])
    for name, leaf in leaves.items():
        gradient = leaf.grad.transpose(1, 2) if name == "x" else leaf.grad
        assert_near(gradient.cpu(), case[f"grad/{name}"], EXACT[dtype])


@pytest.mark.parametrize("length", [1, 2, 3, 7, 63, 197, 209, 1037])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend, device", backend_cases("causal_conv1d"))
def test_any_length_in_both_directions(backend, device, length, reverse):
    assert_right(inputs(2, length, 6, device=device), backend, torch.float32, reverse=reverse)


@pytest.mark.parametrize("d_conv", [1, 2, 3, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("backend, device", backend_cases("causal_conv1d"))
def test_any_filter_length_with_and_without_bias_and_activation(backend, device, d_conv, bias, activation):
    for reverse in (False, True):
        tensors = inputs(3, 11, 19, d_conv, device=device, bias=bias)
        assert_right(tensors, backend, torch.float32, activation=activation, reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend, device", backend_cases("causal_conv1d", torch.bfloat16))
def test_16_bit_types_add_only_their_rounding_error(backend, device, dtype):
    tensors = inputs(2, 37, 21, dtype=dtype, device=device)
    assert_right(tensors, backend, dtype)
    assert causal_conv1d(**tensors, backend=backend).dtype == dtype


@pytest.mark.parametrize("backend, device", backend_cases("causal_conv1d"))
@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 50), st.integers(1, 70), st.integers(1, 4)),
    reverse=st.booleans(),
    bias=st.booleans(),
)
def test_random_shapes(backend, device, shape, reverse, bias):
    tensors = inputs(*shape, device=device, bias=bias, seed=sum(shape))
    found = with_gradients(conv_with(backend, reverse=reverse), tensors)
    expected = with_gradients(conv_with("reference", reverse=reverse), to_double(tensors))
    assert_same(without_short_sums(found), without_short_sums(expected), torch.float32)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend, device", backend_cases("causal_conv1d"))
def test_a_position_sees_only_itself_and_its_past(backend, device, reverse):
    tensors = inputs(2, 20, 5, device=device)
    before = causal_conv1d(**tensors, reverse=reverse, backend=backend)
    for at in (0, 7, 19):
        x = tensors["x"].clone()
        x[1, at] = float("nan")
        after = causal_conv1d(**tensors | {"x": x}, reverse=reverse, backend=backend)
        seen = slice(max(at - 3, 0), at + 1) if reverse else slice(at, at + 4)
        assert bool(after[1, seen].isnan().all())
        after[1, seen] = before[1, seen]
        assert torch.equal(before, after)


@pytest.mark.parametrize("backend, device", backend_cases("causal_conv1d"))
def test_reverse_is_the_flipped_sequence_flipped_back(backend, device):
    tensors = inputs(2, 23, 5, device=device)
    found = causal_conv1d(**tensors, reverse=True, backend=backend)
    expected = causal_conv1d(**tensors | {"x": tensors["x"].flip(1)}, backend=backend).flip(1)
    assert relative_error(found, expected) <= 1e-6


@pytest.mark.parametrize("backend, device", backend_cases("causal_conv1d"))
def test_every_element_is_written(backend, device, nan_memory):
    found = with_gradients(conv_with(backend), inputs(3, 50, 33, device=device))
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@pytest.mark.parametrize("backend, device", backend_cases("causal_conv1d"))
def test_any_memory_layout(backend, device):
    tensors = inputs(2, 12, 6, device=device)
    x = tensors["x"]
    wide = x.new_full((2, 12, 17), float("nan"))
    wide[..., 4:10] = x
    layouts = {
        "slice": wide[..., 4:10],
        "time first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "channels first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "expanded": x[:1].expand(2, 12, 6),
    }
    for name, odd in layouts.items():
        plain = tensors | {"x": odd.contiguous()}
        found, expected = (
            with_gradients(lambda x, **t: causal_conv1d(x + 0, **t, backend=backend), given)
            for given in (tensors | {"x": odd}, plain)
        )
        assert_same(found, expected, torch.float32)
        y = causal_conv1d(odd, tensors["weight"], tensors["bias"], backend=backend)
        assert y.is_contiguous() and relative_error(y, expected["output 0"]) <= 1e-6, name


@pytest.mark.parametrize("backend, device", backend_cases("causal_conv1d", torch.float64))
def test_gradients_are_those_of_finite_differences(backend, device):
    leaves = [tensor.requires_grad_() for tensor in inputs(2, 4, 3, 3, dtype=torch.float64, device=device).values()]
    assert torch.autograd.gradcheck(lambda *t: causal_conv1d(*t, backend=backend), leaves)


@pytest.mark.parametrize("backend, device", backend_cases("causal_conv1d"))
def test_an_empty_sequence_gives_an_empty_output(backend, device):
    assert causal_conv1d(**inputs(2, 0, 5, device=device), backend=backend).shape == (2, 0, 5)


@without_shape_hook
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("backend, device", [*backend_cases("causal_conv1d", kernels_only=True), ("stub", "cpu")])
def test_opcheck_and_a_full_graph(stub_kernels, fresh_compiler, backend, device, bias):
    tensors = inputs(2, 9, 5, device=device, bias=bias)
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors.values()]
    torch.library.opcheck(torch.ops.mambar.causal_conv1d.default, (*leaves, True, True, backend))
    compiled = torch.compile(conv_with(backend), fullgraph=True, backend="aot_eager")
    expected = with_gradients(conv_with("reference"), to_double(tensors))
    assert_same(with_gradients(compiled, tensors), expected, torch.float32)
    assert_right(tensors, backend, torch.float32, activation=None, reverse=True)


@without_shape_hook
def test_export_holds_plain_operations_only():
    class Conv(torch.nn.Module):
        def forward(self, x, weight, bias):
            return causal_conv1d(x, weight, bias, reverse=True)

    tensors = tuple(inputs().values())
    program = torch.export.export(Conv(), tensors)
    assert not any("mambar" in str(node.target) for node in program.graph.nodes)
    assert relative_error(program.module()(*tensors), Conv()(*tensors)) <= TOLERANCES[torch.float32][0]


def test_second_derivatives_of_the_reference():
    leaves = [tensor.requires_grad_() for tensor in inputs(1, 3, 2, 2, dtype=torch.float64).values()]
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(causal_conv1d, leaves)


@without_shape_hook
def test_bad_input_is_refused_with_the_argument_named():
    good = inputs()
    for name, tensor in (("x", torch.zeros(9, 5)), ("weight", torch.zeros(4, 5)), ("bias", torch.zeros(4))):
        with pytest.raises(ValueError, match=f"^{name} has"):
            causal_conv1d(**good | {name: tensor})
    with pytest.raises(ValueError, match="d_conv is 0"):
        causal_conv1d(**good | {"weight": torch.zeros(5, 0)})
    with pytest.raises(ValueError, match="activation='relu' is not known"):
        causal_conv1d(**good, activation="relu")
