"""Every backend of the scan against the float64 reference, and the promises of the interface."""

import sys
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden_cases import assert_near, cases
from mambar.ops import selective_scan, selective_scan_with_state
from op_inputs import (
    SCAN_NAMES,
    TOLERANCES,
    assert_same,
    backend_cases,
    relative_error,
    scan_inputs,
    to_double,
    with_gradients,
    without_shape_hook,
    without_short_sums,
)

ODD_LENGTHS = (1, 2, 7, 16, 17, 63, 197, 209)
OPTIONAL = ("D", "z", "delta_bias", "initial_state")


def scan_with(backend, **options):
    def scan(**tensors):
        return selective_scan_with_state(**tensors, backend=backend, **options)

    return scan


def assert_right(tensors, backend, dtype, *, times=1, **options):
    found = with_gradients(scan_with(backend, **options), tensors)
    expected = with_gradients(scan_with("reference", **options), to_double(tensors))
    assert_same(found, expected, dtype, times=times)


def _golden(case, dtype, device):
    """The tensors, channels last, and the options of a golden case."""
    names = [name for name in SCAN_NAMES if name in case]
    tensors = {name: case[name].to(device, dtype) for name in names}
    for name in ("u", "delta", "B", "C", "z"):
        if name in tensors:
            tensors[name] = tensors[name].transpose(1, 2)
    return tensors, {"delta_softplus": case.config["delta_softplus"]}


@pytest.mark.parametrize("case", cases("selective_scan"), ids=str)
@pytest.mark.parametrize(
    "dtype, backend, device",
    [
        pytest.param(dtype, *case.values, id=f"{dtype}-{case.id}".removeprefix("torch."), marks=case.marks)
        for dtype in (torch.float64, torch.float32)
        for case in backend_cases("selective_scan", dtype)
    ],
)
def test_golden_values_of_the_released_code(case, dtype, backend, device):
    tensors, options = _golden(case, dtype, device)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    out, state = selective_scan_with_state(**leaves, **options, backend=backend)
    (out * case["loss_weight"].transpose(1, 2).to(device, dtype)).sum().backward()
    output_tolerance, gradient_tolerance = TOLERANCES[dtype]
    assert_near(out.transpose(1, 2).cpu(), case["out"], output_tolerance)
    assert_near(state.cpu(), case["last_state"], output_tolerance)
    for name, leaf in leaves.items():
        gradient = leaf.grad.cpu()
        if name in ("u", "delta", "B", "C", "z"):
            gradient = gradient.transpose(1, 2)
        assert_near(gradient, case[f"grad/{name}"], gradient_tolerance)


@pytest.mark.parametrize("length", ODD_LENGTHS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_any_length_in_both_directions(backend, device, length, reverse):
    tensors = scan_inputs(2, length, 5, 4, device=device)
    assert_right(tensors, backend, torch.float32, delta_softplus=True, reverse=reverse)


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_a_long_sequence_that_forgets_slowly(backend, device):
    tensors = scan_inputs(1, 1037, 3, 2, device=device, slow_decay=True)
    assert_right(tensors, backend, torch.float32, times=4, delta_softplus=True)


@pytest.mark.parametrize("d_inner, d_state", [(1, 1), (3, 16), (17, 5), (65, 16), (130, 3), (20, 64)])
@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_any_width_and_state(backend, device, d_inner, d_state):
    assert_right(scan_inputs(3, 19, d_inner, d_state, device=device), backend, torch.float32, delta_softplus=True)


@pytest.mark.parametrize("without", [(name,) for name in OPTIONAL] + [OPTIONAL, ("z", "initial_state")], ids=str)
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_any_argument_may_be_absent(backend, device, without, softplus):
    tensors = scan_inputs(2, 9, 5, 3, device=device, without=without)
    if not softplus:
        tensors["delta"] = tensors["delta"].abs()
        tensors["delta_bias"] = None if tensors["delta_bias"] is None else tensors["delta_bias"].abs()
    assert_right(tensors, backend, torch.float32, delta_softplus=softplus)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend, device", backend_cases("selective_scan", torch.bfloat16))
def test_16_bit_types_add_only_their_rounding_error(backend, device, dtype, reverse):
    tensors = scan_inputs(2, 37, 7, 5, dtype=dtype, device=device)
    options = {"delta_softplus": True, "reverse": reverse}
    found = with_gradients(scan_with(backend, **options), tensors)
    assert_same(found, with_gradients(scan_with("reference", **options), to_double(tensors)), dtype)
    assert found["output 0"].dtype == dtype
    assert found["output 1"].dtype == torch.float32
    for name in SCAN_NAMES:
        assert found[f"gradient of {name}"].dtype == tensors[name].dtype


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan", torch.bfloat16))
def test_the_state_is_not_rounded_to_16_bits(backend, device):
    # Held in bfloat16 the state is off by 0.28 at 784 steps; the rounding of inputs and output alone costs 0.004.
    tensors = scan_inputs(1, 784, 2, 2, dtype=torch.bfloat16, device=device, slow_decay=True, without=("z", "D"))
    y, state = selective_scan_with_state(**tensors, delta_softplus=True, backend=backend)
    right, right_state = selective_scan_with_state(**to_double(tensors), delta_softplus=True, backend="reference")
    assert relative_error(y, right) <= 4e-3
    assert relative_error(state, right_state) <= 1e-5


def _oddly_laid_out(tensor, layout):
    """The same values in another memory layout."""
    if tensor is None or tensor.dim() != 3:
        return tensor
    batch, length, width = tensor.shape
    if layout == "slice of a wider matrix":
        wide = tensor.new_full((batch, length, width + 5), float("nan"))
        wide[..., 3 : 3 + width] = tensor
        return wide[..., 3 : 3 + width]
    if layout == "time first":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "channels first":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "every second step":
        wide = tensor.new_full((batch, 2 * length, width), float("nan"))
        wide[:, ::2] = tensor
        return wide[:, ::2]
    assert layout == "expanded"
    return tensor[:1].expand(batch, length, width)


@pytest.mark.parametrize(
    "layout", ["slice of a wider matrix", "time first", "channels first", "every second step", "expanded"]
)
@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_any_memory_layout(backend, device, layout):
    plain = scan_inputs(2, 21, 6, 4, device=device)
    if layout == "expanded":
        plain = {name: _oddly_laid_out(t, layout) for name, t in plain.items()}
        plain = {name: None if t is None else t.contiguous() for name, t in plain.items()}
    odd = {name: _oddly_laid_out(tensor, layout) for name, tensor in plain.items()}
    before = {name: tensor.clone() for name, tensor in odd.items() if tensor is not None}
    out, state = selective_scan_with_state(**odd, delta_softplus=True, backend=backend)
    right, right_state = selective_scan_with_state(**plain, delta_softplus=True, backend=backend)
    assert relative_error(out, right) <= 1e-6 and relative_error(state, right_state) <= 1e-6
    assert all(torch.equal(odd[name], tensor) for name, tensor in before.items())
    assert out.is_contiguous() and state.is_contiguous()

    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(device)
    gradients = []
    for tensors, dy in ((odd, _oddly_laid_out(weight, layout)), (plain, _oddly_laid_out(weight, layout).contiguous())):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors.values()]
        y = selective_scan_with_state(*leaves, delta_softplus=True, backend=backend)[0]
        gradients.append(torch.autograd.grad(y, leaves, dy))
    for name, found, expected in zip(plain, *gradients, strict=True):
        assert relative_error(found, expected) <= 1e-5, name


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_every_element_is_written(backend, device, nan_memory):
    found = with_gradients(scan_with(backend, delta_softplus=True), scan_inputs(3, 50, 33, 7, device=device))
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
@pytest.mark.slow
def test_repeated_calls_are_bit_identical(backend, device):
    tensors = scan_inputs(4, 70, 40, 16, device=device)
    first = with_gradients(scan_with(backend, delta_softplus=True), tensors)
    for _ in range(10):
        again = with_gradients(scan_with(backend, delta_softplus=True), tensors)
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


shapes = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 6))


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
@settings(max_examples=60, derandomize=True, deadline=None)
@given(shape=shapes, reverse=st.booleans(), softplus=st.booleans(), absent=st.sets(st.sampled_from(OPTIONAL)))
def test_random_shapes(backend, device, shape, reverse, softplus, absent):
    tensors = scan_inputs(*shape, device=device, without=tuple(absent), seed=sum(shape))
    if not softplus:
        tensors["delta"] = tensors["delta"].abs()
        tensors["delta_bias"] = None
    options = {"delta_softplus": softplus, "reverse": reverse}
    found = with_gradients(scan_with(backend, **options), tensors)
    expected = with_gradients(scan_with("reference", **options), to_double(tensors))
    assert_same(without_short_sums(found), without_short_sums(expected), torch.float32)


def of_the_norm(found, right):
    """The norm of the difference over that of the right values."""
    return ((found.to("cpu", torch.float64) - right).norm() / right.norm().clamp_min(1e-30)).item()


@pytest.mark.slow
@pytest.mark.rel
@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    # From eight channels on: one channel's parameter gradient is a single sum, which may cancel to nothing.
    shape=st.tuples(st.integers(1, 4), st.integers(1, 333), st.integers(8, 70), st.integers(1, 20)),
    reverse=st.booleans(),
    absent=st.sets(st.sampled_from(OPTIONAL)),
    slow_decay=st.booleans(),
)
def test_p9_random_shapes(backend, device, shape, reverse, absent, slow_decay):
    tensors = scan_inputs(*shape, device=device, without=tuple(absent), seed=sum(shape), slow_decay=slow_decay)
    options = {"delta_softplus": True, "reverse": reverse}
    found = with_gradients(scan_with(backend, **options), tensors)
    expected = with_gradients(scan_with("reference", **options), to_double(tensors))
    errors = {name: of_the_norm(found[name], right) for name, right in expected.items()}
    bounds = {name: 1e-5 if name.startswith("gradient") else 1e-6 for name in errors}
    approximate = device == "cuda" and backend in ("cuda", "triton")
    if approximate:
        # Measured: ex2.approx is too small by 0.3 to 0.8 of 2^-24 on average. A slow state sums that over its mean age
        # of half the length, so that its error is at most 0.8 L 2^-25.
        bounds |= {name: max(1e-6, shape[1] * 2**-25) for name in ("output 0", "output 1")}
    if all(error <= bounds[name] for name, error in errors.items()):
        return
    # Where terms cancel (one output, eight states of both signs) no float32 sum keeps 1e-6 of the result: there the
    # plain float32 loop, which adds in the most obvious order, says what can be asked.
    plain = with_gradients(scan_with("reference", **options), tensors)
    allowed = {name: 2 * of_the_norm(plain[name], right) for name, right in expected.items()}
    if approximate:
        # The same cancellation enlarges the error of the decays: what it amounts to, an exact scan tells.
        with mock.patch.object(torch, "exp", exponential_too_small(0.8)):
            biased = with_gradients(scan_with("reference", **options), to_double(tensors))
        allowed = {name: bound + of_the_norm(biased[name], expected[name]) for name, bound in allowed.items()}
    for name, error in errors.items():
        assert error <= max(bounds[name], allowed[name]), name


def exponential_too_small(part, exp=torch.exp):
    """`exp` whose results are too small by `part` of 2^-24, as those of ex2.approx are on average."""
    return lambda x: exp(x) * (1 - part * 2**-24)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1037, 3137])
@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_a_long_sequence(backend, device, length):
    assert_right(scan_inputs(1, length, 5, 4, device=device), backend, torch.float32, delta_softplus=True, reverse=True)


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
@settings(max_examples=15, derandomize=True, deadline=None)
@given(shape=shapes, reverse=st.booleans(), factor=st.floats(-3, 3))
def test_linear_in_u(backend, device, shape, reverse, factor):
    tensors = scan_inputs(*shape, device=device, without=("initial_state",))
    other = torch.randn(tensors["u"].shape, generator=torch.Generator().manual_seed(5)).to(device)
    options = {"delta_softplus": True, "reverse": reverse, "backend": backend}
    y, state = selective_scan_with_state(**tensors, **options)
    y2, state2 = selective_scan_with_state(**tensors | {"u": other}, **options)
    both, both_state = selective_scan_with_state(**tensors | {"u": tensors["u"] + factor * other}, **options)
    scale = max(y.abs().max().item(), (factor * y2).abs().max().item(), 1e-6)
    assert (both - y - factor * y2).abs().max().item() <= 1e-5 * scale
    scale = max(state.abs().max().item(), (factor * state2).abs().max().item(), 1e-6)
    assert (both_state - state - factor * state2).abs().max().item() <= 1e-5 * scale


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
@settings(max_examples=15, derandomize=True, deadline=None)
@given(data=st.data(), reverse=st.booleans())
def test_a_position_sees_only_its_past(backend, device, data, reverse):
    shape = data.draw(shapes)
    length = shape[1]
    at = data.draw(st.integers(0, length - 1))
    tensors = scan_inputs(*shape, device=device)
    options = {"delta_softplus": True, "reverse": reverse, "backend": backend}
    before = selective_scan_with_state(**tensors, **options)[0]
    for name in ("u", "delta", "B", "C", "z"):
        changed = tensors[name].clone()
        changed[:, at] += 1
        after = selective_scan_with_state(**tensors | {name: changed}, **options)[0]
        unseen = slice(at + 1, None) if reverse else slice(None, at)
        assert torch.equal(before[:, unseen], after[:, unseen]), name


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
@settings(max_examples=15, derandomize=True, deadline=None)
@given(shape=shapes)
def test_reverse_is_a_scan_of_the_flipped_sequence_flipped_back(backend, device, shape):
    tensors = scan_inputs(*shape, device=device)
    flipped = {n: t.flip(1) if n in ("u", "delta", "B", "C", "z") else t for n, t in tensors.items()}
    found = selective_scan_with_state(**tensors, delta_softplus=True, reverse=True, backend=backend)
    expected = selective_scan_with_state(**flipped, delta_softplus=True, backend=backend)
    assert relative_error(found[0], expected[0].flip(1)) <= 1e-6
    assert relative_error(found[1], expected[1]) <= 1e-6


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
@settings(max_examples=15, derandomize=True, deadline=None)
@given(data=st.data(), reverse=st.booleans())
def test_two_parts_with_the_state_passed_on_equal_the_whole_scan(backend, device, data, reverse):
    shape = data.draw(shapes.filter(lambda shape: shape[1] > 1))
    cut = data.draw(st.integers(1, shape[1] - 1))
    tensors = scan_inputs(*shape, device=device)
    options = {"delta_softplus": True, "reverse": reverse, "backend": backend}
    whole, last = selective_scan_with_state(**tensors, **options)

    def part(span, state):
        cut_out = {n: t[:, span] if n in ("u", "delta", "B", "C", "z") else t for n, t in tensors.items()}
        return selective_scan_with_state(**cut_out | {"initial_state": state}, **options)

    spans = [slice(cut, None), slice(None, cut)] if reverse else [slice(None, cut), slice(cut, None)]
    first, state = part(spans[0], tensors["initial_state"])
    second, state = part(spans[1], state)
    joined = torch.cat([second, first] if reverse else [first, second], dim=1)
    assert relative_error(joined, whole) <= 2e-6 and relative_error(state, last) <= 2e-6


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan", torch.float64))
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_those_of_finite_differences(backend, device, reverse):
    tensors = scan_inputs(2, 5, 3, 2, dtype=torch.float64, device=device)
    tensors["A"] = tensors["A"] - 0.1
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]

    def scan(*tensors):
        return selective_scan_with_state(*tensors, delta_softplus=True, reverse=reverse, backend=backend)

    assert torch.autograd.gradcheck(scan, leaves)


@pytest.mark.rel
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z"])
@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_p10_nan_stays_in_its_batch_item_and_its_future(backend, device, name, value, reverse):
    tensors = scan_inputs(3, 21, 5, 4, device=device)
    tensors[name][1, 10, 2] = value
    y, state = selective_scan_with_state(**tensors, delta_softplus=True, reverse=reverse, backend=backend)
    assert bool(y[[0, 2]].isfinite().all()) and bool(state[[0, 2]].isfinite().all())
    assert bool(y[1, 11:].isfinite().all() if reverse else y[1, :10].isfinite().all())
    if value != value:
        assert bool(y[1, 10].isnan().any())
    if name in ("C", "z"):
        assert bool(y[1, [9, 11]].isfinite().all())


EXTREMES = {
    "no step": {"delta": 0.0},
    "a tiny step": {"delta": 1e-8},
    "a huge step": {"delta": 1e4},
    "no decay": {"A": 0.0},
    "hardly any decay": {"A": -1e-6},
    "immediate decay": {"A": -1e4},
    "a huge step without decay": {"delta": 1e4, "A": 0.0},
    "a huge step with immediate decay": {"delta": 1e4, "A": -1e4},
    "only zeros": dict.fromkeys(SCAN_NAMES, 0.0),
    "subnormal inputs": {"u": 1e-42, "B": 1e-42},
    "the largest float16 inputs": {"u": 6e4},
    "the smallest float16 inputs": {"u": -6e4},
    "a wide open gate": {"z": 1e4},
    "a closed gate": {"z": -1e4},
}


@pytest.mark.rel
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("extreme", EXTREMES.values(), ids=EXTREMES.keys())
@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_p10_extremes_are_finite_and_right(backend, device, extreme, softplus):
    tensors = scan_inputs(2, 19, 5, 4, device=device, without=("delta_bias",))
    tensors["delta"] = tensors["delta"].abs()
    for name, value in extreme.items():
        if tensors[name] is not None:
            tensors[name] = torch.full_like(tensors[name], value)
    options = {"delta_softplus": softplus}
    found = with_gradients(scan_with(backend, **options), tensors)
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    # Decays of 1e4 steps cannot be held to more than the rounding of their exponent: outputs only, four times the
    # table.
    expected = with_gradients(scan_with("reference", **options), to_double(tensors))
    for name in ("output 0", "output 1"):
        difference = (found[name].to("cpu", torch.float64) - expected[name]).abs().max()
        assert difference <= 4e-5 * expected[name].abs().max() + 1e-37, name


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_an_empty_sequence_gives_an_empty_output_and_the_state_as_it_was(backend, device):
    tensors = scan_inputs(2, 0, 5, 4, device=device)
    y, state = selective_scan_with_state(**tensors, backend=backend)
    assert y.shape == (2, 0, 5) and torch.equal(state, tensors["initial_state"])
    y, state = selective_scan_with_state(**tensors | {"initial_state": None}, backend=backend)
    assert bool((state == 0).all()) and state.shape == (2, 5, 4)
    for shape in ((0, 3, 5, 4), (2, 3, 0, 4)):
        tensors = scan_inputs(*shape, device=device)
        assert selective_scan_with_state(**tensors, backend=backend)[0].shape == shape[:3]


@pytest.mark.parametrize("backend, device", backend_cases("selective_scan"))
def test_autocast_changes_nothing_inside(backend, device):
    tensors = scan_inputs(2, 33, 6, 4, device=device)
    plain = with_gradients(scan_with(backend, delta_softplus=True), tensors)
    with torch.autocast(device, dtype=torch.bfloat16):
        cast = with_gradients(scan_with(backend, delta_softplus=True), tensors)
    assert all(torch.equal(cast[name], tensor) for name, tensor in plain.items())


def test_mixed_types_are_promoted():
    tensors = scan_inputs(2, 9, 5, 4)
    tensors["B"], tensors["C"] = tensors["B"].bfloat16(), tensors["C"].bfloat16()
    y = selective_scan(**{n: t for n, t in tensors.items() if n != "initial_state"}, delta_softplus=True)
    assert y.dtype == torch.float32
    tensors["u"] = tensors["u"].bfloat16()
    assert selective_scan_with_state(**tensors)[0].dtype == torch.bfloat16
    tensors["delta"] = tensors["delta"].double()
    y, state = selective_scan_with_state(**tensors)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float64)


@without_shape_hook
def test_bad_input_is_refused_with_the_argument_named():
    good = scan_inputs(2, 9, 5, 4)
    bad = {
        "u": torch.zeros(9, 5),
        "delta": torch.zeros(2, 8, 5),
        "A": torch.zeros(4, 5),
        "B": torch.zeros(2, 9, 3),
        "C": torch.zeros(2, 4, 9),
        "D": torch.zeros(4),
        "z": torch.zeros(1, 9, 5),
        "delta_bias": torch.zeros(1),
        "initial_state": torch.zeros(2, 4, 5),
    }
    for name, tensor in bad.items():
        with pytest.raises(ValueError, match=f"^{name} has"):
            selective_scan_with_state(**good | {name: tensor})
    with pytest.raises(ValueError, match="A has a value of 1; it must not be positive"):
        selective_scan_with_state(**good | {"A": torch.ones(5, 4)})
    with pytest.raises(ValueError, match="no state"):
        selective_scan_with_state(
            **good
            | {"A": torch.ones(5, 0), "B": torch.zeros(2, 9, 0), "C": torch.zeros(2, 9, 0), "initial_state": None}
        )
    with pytest.raises(TypeError, match=r"u has dtype torch.int64"):
        selective_scan_with_state(**good | {"u": torch.zeros(2, 9, 5, dtype=torch.int64)})


def _op_arguments(backend, device, without=(), for_backward=True, reverse=False):
    tensors = [t for t in scan_inputs(2, 18, 5, 4, device=device, without=without).values()]
    tensors = [None if t is None else t.requires_grad_(for_backward) for t in tensors]
    return (*tensors, True, reverse, for_backward, backend)


@without_shape_hook
@pytest.mark.parametrize("without", [(), OPTIONAL], ids=["all given", "bare"])
@pytest.mark.parametrize("for_backward", [False, True])
@pytest.mark.parametrize("backend, device", [*backend_cases("selective_scan", kernels_only=True), ("stub", "cpu")])
def test_opcheck(stub_kernels, backend, device, without, for_backward):
    torch.library.opcheck(
        torch.ops.mambar.selective_scan.default, _op_arguments(backend, device, without, for_backward)
    )


@pytest.mark.parametrize("backend, device", [*backend_cases("selective_scan", kernels_only=True), ("stub", "cpu")])
def test_a_kernel_gives_back_contiguous_tensors(stub_kernels, backend, device):
    # Compiled graphs require it, and opcheck does not test it.
    *tensors, softplus, reverse, for_backward, backend = _op_arguments(backend, device, for_backward=True)
    tensors = [tensor.detach() for tensor in tensors]
    y, state, *saved = torch.ops.mambar.selective_scan(*tensors, softplus, reverse, for_backward, backend)
    run = torch.ops.mambar.selective_scan_backward
    gradients = run(torch.randn_like(y), torch.randn_like(state), *tensors, saved, softplus, reverse, backend)
    assert all(tensor.is_contiguous() for tensor in (y, state, *saved, *gradients))


@without_shape_hook
@pytest.mark.parametrize("backend, device", [*backend_cases("selective_scan", kernels_only=True), ("stub", "cpu")])
def test_a_kernel_is_one_node_of_a_full_graph(stub_kernels, fresh_compiler, backend, device):
    tensors = scan_inputs(2, 18, 5, 4, device=device)
    graphs = []

    def record(graph, example_inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if "mambar" in str(node.target)])
        return graph

    scan = torch.compile(scan_with(backend, delta_softplus=True), fullgraph=True, backend=record)
    assert_same(
        with_gradients(scan, tensors),
        with_gradients(scan_with("reference", delta_softplus=True), to_double(tensors)),
        torch.float32,
    )
    assert [len(graph) for graph in graphs] == [1]


@without_shape_hook
@pytest.mark.slow
@pytest.mark.parametrize("backend, device", [*backend_cases("selective_scan", kernels_only=True), ("stub", "cpu")])
def test_inductor_compiles_a_kernel_with_its_backward(stub_kernels, fresh_compiler, backend, device):
    tensors = scan_inputs(2, 18, 5, 4, device=device)
    scan = torch.compile(scan_with(backend, delta_softplus=True, reverse=True), fullgraph=True)
    expected = with_gradients(scan_with("reference", delta_softplus=True, reverse=True), to_double(tensors))
    assert_same(with_gradients(scan, tensors), expected, torch.float32)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_operator_passes_every_argument(stub_kernels, reverse):
    for without in ((), OPTIONAL):
        tensors = scan_inputs(2, 18, 5, 4, dtype=torch.float64, without=without)
        assert_right(tensors, "stub", torch.float64, delta_softplus=True, reverse=reverse)
    leaves = [tensor.requires_grad_() for tensor in scan_inputs(1, 4, 2, 2, dtype=torch.float64).values()]
    assert torch.autograd.gradcheck(lambda *t: selective_scan_with_state(*t, backend="stub"), leaves)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("backend, device", [*backend_cases("selective_scan"), ("stub", "cpu")])
def test_only_the_output_or_only_the_state_may_be_used(stub_kernels, backend, device, index):
    def used(backend):
        return lambda **tensors: selective_scan_with_state(**tensors, backend=backend)[index]

    tensors = scan_inputs(2, 21, 3, 2, device=device)
    found = with_gradients(used(backend), tensors)
    assert_same(found, with_gradients(used("reference"), to_double(tensors)), torch.float32)


@pytest.mark.parametrize("mistake", ["forgets the skip", "one step late", "swaps B and C", "ignores the start"])
def test_a_wrong_kernel_is_caught(stub_kernels, monkeypatch, mistake):
    kernel = sys.modules["stub_selective_scan"]
    right = kernel.forward

    def wrong(u, delta, A, B, C, D, z, delta_bias, initial_state, **options):
        if mistake == "forgets the skip":
            D = None
        if mistake == "one step late":
            u = u.roll(1, dims=1)
        if mistake == "swaps B and C":
            B, C = C, B
        if mistake == "ignores the start":
            initial_state = None
        return right(u, delta, A, B, C, D, z, delta_bias, initial_state, **options)

    monkeypatch.setattr(kernel, "forward", wrong)
    with pytest.raises(AssertionError, match="output 0"):
        assert_right(scan_inputs(), "stub", torch.float32, delta_softplus=True)
