"""Every backend of the bidirectional mix against the float64 reference, and the promises of the interface."""

import pytest
import torch
import torch.nn.functional as F

from golden_cases import assert_near, cases
from mambar.errors import BackendUnavailable
from mambar.ops import ScanDirection, bidirectional_mix, use_backend
from op_inputs import assert_same, backend_cases, relative_error, to_double, with_gradients, without_shape_hook

FIELDS = ScanDirection._fields
# Of a mixer: outputs, gradients (tests/golden/README.md).
EXACT = {torch.float64: (1e-11, 1e-11), torch.float32: (2e-5, 5e-5)}


def inputs(
    batch=2,
    length=13,
    d_inner=6,
    d_state=4,
    dt_rank=2,
    d_conv=4,
    *,
    dtype=torch.float32,
    device="cpu",
    bias=True,
    seed=0,
):
    """xz and the parameters of both directions, flat: `forward_params.A`, …"""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {"xz": draw(batch, length, 2 * d_inner).to(device, dtype)}
    for direction in ("forward_params", "backward_params"):
        drawn = ScanDirection(
            conv_weight=draw(d_inner, d_conv) / 2,
            conv_bias=draw(d_inner) / 4,
            x_proj=draw(dt_rank + 2 * d_state, d_inner) / d_inner**0.5,
            dt_proj=draw(d_inner, dt_rank) / dt_rank**0.5,
            dt_bias=draw(d_inner) / 2 - 2,
            A=-draw(d_inner, d_state).abs() * 4,
            D=draw(d_inner),
        )
        for field, tensor in drawn._asdict().items():
            kind = dtype if field in ("x_proj", "dt_proj") else wide
            tensors[f"{direction}.{field}"] = None if field == "conv_bias" and not bias else tensor.to(device, kind)
    return tensors


def mix_with(backend, **options):
    def mix(**tensors):
        params = [
            ScanDirection(*(tensors[f"{direction}.{field}"] for field in FIELDS))
            for direction in ("forward_params", "backward_params")
        ]
        return bidirectional_mix(tensors["xz"], *params, **options, backend=backend)

    return mix


def assert_right(tensors, backend, dtype, *, times=1, **options):
    found = with_gradients(mix_with(backend, **options), tensors)
    with use_backend("reference"):
        expected = with_gradients(mix_with("auto", **options), to_double(tensors))
    assert_same(found, expected, dtype, times=times)


@pytest.mark.parametrize("case", cases("mixer"), ids=str)
@pytest.mark.parametrize(
    "dtype, backend, device",
    [
        pytest.param(dtype, *case.values, id=f"{dtype}-{case.id}".removeprefix("torch."), marks=case.marks)
        for dtype in EXACT
        for case in backend_cases("bidirectional_mix", dtype)
    ],
)
def test_golden_values_of_the_released_mixer(case, dtype, backend, device):
    names = [name for name in case.tensors if name.startswith("param/")]
    leaves = {name: case[name].to(device, dtype).clone().requires_grad_() for name in names}
    tokens = case["input"].to(device, dtype).clone().requires_grad_()

    def direction(mark):
        def given(name):
            return leaves.get(f"param/{name}")

        bias = given(f"conv1d{mark}.bias")
        return ScanDirection(
            conv_weight=given(f"conv1d{mark}.weight")[:, 0],
            conv_bias=bias,
            x_proj=given(f"x_proj{mark}.weight"),
            dt_proj=given(f"dt_proj{mark}.weight"),
            dt_bias=given(f"dt_proj{mark}.bias"),
            A=-torch.exp(given(f"A{mark}_log")),
            D=given(f"D{mark}"),
        )

    xz = F.linear(tokens, leaves["param/in_proj.weight"], leaves.get("param/in_proj.bias"))
    mixed = bidirectional_mix(xz, direction(""), direction("_b"), backend=backend)
    output = F.linear(mixed, leaves["param/out_proj.weight"], leaves.get("param/out_proj.bias"))
    (output * case["loss_weight"].to(device, dtype)).sum().backward()
    output_tolerance, gradient_tolerance = EXACT[dtype]
    assert_near(output.cpu(), case["output"], output_tolerance)
    assert_near(tokens.grad.cpu(), case["grad_input"], gradient_tolerance)
    for name, leaf in leaves.items():
        gradient = torch.zeros_like(leaf.detach()) if leaf.grad is None else leaf.grad
        assert_near(gradient.cpu(), case[name.replace("param", "grad")], gradient_tolerance)


@pytest.mark.parametrize("length", [1, 2, 7, 63, 197, 209])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("backend, device", backend_cases("bidirectional_mix"))
def test_any_length_summed_or_averaged(backend, device, length, average):
    tensors = inputs(2, length, device=device)
    assert_right(tensors, backend, torch.float32, times=2.5, average=average)


@pytest.mark.parametrize(
    "sizes",
    [
        {"d_inner": 1, "d_state": 1, "dt_rank": 1},
        {"d_inner": 40, "d_state": 16},
        {"d_inner": 67, "d_state": 3, "dt_rank": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("d_conv, bias", [(2, True), (4, False)])
@pytest.mark.parametrize("backend, device", backend_cases("bidirectional_mix"))
def test_any_sizes(backend, device, sizes, d_conv, bias):
    assert_right(inputs(3, 17, d_conv=d_conv, bias=bias, device=device, **sizes), backend, torch.float32, times=2.5)


@pytest.mark.parametrize("backend, device", backend_cases("bidirectional_mix", torch.bfloat16))
def test_autocast_rounds_no_more_than_the_composition(backend, device):
    """As in flash-attention: at most twice the error of plain PyTorch in this type, for outputs and gradients."""
    tensors = inputs(2, 61, 24, 8, 3, device=device)
    with use_backend("reference"):
        right = with_gradients(mix_with("auto"), to_double(tensors))
        with torch.autocast(device, dtype=torch.bfloat16):
            plain = with_gradients(mix_with("auto"), tensors | {"xz": tensors["xz"].bfloat16()})
    with torch.autocast(device, dtype=torch.bfloat16):
        found = with_gradients(mix_with(backend), tensors | {"xz": tensors["xz"].bfloat16()})
    assert found["output 0"].dtype == torch.bfloat16
    for name, tensor in right.items():
        assert found[name].dtype == plain[name].dtype, name
        error, allowed = relative_error(found[name], tensor), relative_error(plain[name], tensor)
        assert error <= 2 * allowed + 1e-3, name


@pytest.mark.rel
@pytest.mark.parametrize("backend, device", backend_cases("bidirectional_mix"))
def test_p10_nan_stays_in_its_batch_item(backend, device):
    tensors = inputs(3, 21, device=device)
    tensors["xz"][1, 10, 2] = float("nan")
    y = mix_with(backend)(**tensors)
    assert bool(y[[0, 2]].isfinite().all()) and bool(y[1].isnan().any())


@pytest.mark.parametrize("backend, device", backend_cases("bidirectional_mix"))
def test_swapping_the_directions_is_flipping_the_sequence(backend, device):
    tensors = inputs(1, 15, device=device)
    swapped = {
        name.replace("forward_params", "?")
        .replace("backward_params", "forward_params")
        .replace("?", "backward_params"): tensor
        for name, tensor in tensors.items()
    }
    swapped["xz"] = tensors["xz"].flip(1)
    mix = mix_with(backend)
    assert relative_error(mix(**swapped).flip(1), mix(**tensors)) <= 2e-6


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("backend, device", backend_cases("bidirectional_mix"))
def test_the_logarithm_of_the_decay(backend, device, gradients):
    tensors = inputs(device=device)
    logs = {name: torch.log(-tensor) for name, tensor in tensors.items() if name.endswith(".A")}
    decays = {name: -torch.exp(log) for name, log in logs.items()}
    given, same = (tensors | rates for rates in (logs, decays))
    if not gradients:
        assert torch.equal(mix_with(backend, A_is_log=True)(**given), mix_with(backend)(**same))
        return
    found = with_gradients(mix_with(backend, A_is_log=True), given)
    right = with_gradients(mix_with(backend), same)
    for name, tensor in found.items():
        expected = right[name] * decays.get(name.removeprefix("gradient of "), 1.0)
        assert relative_error(tensor, expected) <= 1e-6, name


@pytest.mark.parametrize("backend, device", backend_cases("bidirectional_mix"))
def test_every_element_is_written(backend, device, nan_memory):
    found = with_gradients(mix_with(backend), inputs(3, 50, 33, 7, device=device))
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@pytest.mark.parametrize("backend, device", backend_cases("bidirectional_mix"))
def test_any_memory_layout(backend, device):
    tensors = inputs(2, 12, device=device)
    right = mix_with(backend)(**tensors)
    wide = tensors["xz"].new_full((2, 12, 30), float("nan"))
    wide[..., 7:19] = tensors["xz"]
    for xz in (wide[..., 7:19], tensors["xz"].transpose(0, 2).contiguous().transpose(0, 2)):
        assert relative_error(mix_with(backend)(**tensors | {"xz": xz}), right) <= 2e-6


@pytest.mark.parametrize("backend, device", backend_cases("bidirectional_mix"))
def test_repeated_calls_are_bit_identical(backend, device):
    tensors = inputs(3, 40, 24, 16, device=device)
    first = with_gradients(mix_with(backend), tensors)
    for _ in range(5):
        again = with_gradients(mix_with(backend), tensors)
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("backend, device", backend_cases("bidirectional_mix", torch.float64))
def test_gradients_are_those_of_finite_differences(backend, device):
    tensors = inputs(1, 4, 3, 2, 1, 2, dtype=torch.float64, device=device)
    tensors |= {name: tensor - 0.1 for name, tensor in tensors.items() if name.endswith(".A")}
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]

    def mix(*leaves):
        return mix_with(backend)(**dict(zip(tensors, leaves, strict=True)))

    assert torch.autograd.gradcheck(mix, leaves)


@without_shape_hook
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("backend, device", [*backend_cases("bidirectional_mix", kernels_only=True), ("stub", "cpu")])
def test_opcheck_and_a_full_graph(stub_kernels, fresh_compiler, backend, device, bias):
    tensors = inputs(device=device, bias=bias)
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors.values()]
    torch.library.opcheck(torch.ops.mambar.bidirectional_mix.default, (*leaves, True, True, backend))
    compiled = torch.compile(mix_with(backend), fullgraph=True, backend="aot_eager")
    expected = with_gradients(mix_with("reference"), to_double(tensors))
    found = with_gradients(compiled, tensors)
    assert_same(found, expected, torch.float32, times=2.5)
    assert_right(tensors, backend, torch.float32, times=2.5, average=False)


def test_the_active_name_reaches_the_composed_ops(stub_kernels):
    tensors = inputs()
    with use_backend("doubling"), torch.no_grad():
        doubling = mix_with("auto")(**tensors)
    with use_backend("reference"), torch.no_grad():
        reference = mix_with("auto")(**tensors)
    assert not torch.equal(doubling, reference) and relative_error(doubling, reference) <= 1e-5
    with pytest.raises(ValueError, match="backend='doubling' is not one of bidirectional_mix"):
        mix_with("doubling")(**tensors)
    with pytest.raises(BackendUnavailable), use_backend("chunked"):
        mix_with("auto")(**{name: tensor.to("meta") for name, tensor in tensors.items()})


def test_an_empty_sequence_gives_an_empty_output(stub_kernels):
    for backend in ("auto", "composed", "reference", "stub"):
        assert mix_with(backend)(**inputs(2, 0)).shape == (2, 0, 6)


@without_shape_hook
def test_bad_input_is_refused_with_the_argument_named():
    good = inputs()
    bad = {
        "xz": torch.zeros(13, 12),
        "forward_params.conv_weight": torch.zeros(5, 4),
        "forward_params.conv_bias": torch.zeros(5),
        "backward_params.x_proj": torch.zeros(9, 6),
        "backward_params.dt_bias": torch.zeros(5),
        "forward_params.A": torch.zeros(5, 4),
        "backward_params.D": torch.zeros(1),
    }
    for name, tensor in bad.items():
        with pytest.raises(ValueError, match=f"^{name} has"):
            mix_with("auto")(**good | {name: tensor})
    with pytest.raises(ValueError, match="even number"):
        mix_with("auto")(**good | {"xz": torch.zeros(2, 3, 7)})
    with pytest.raises(ValueError, match="must not be positive"):
        mix_with("auto")(**good | {"backward_params.A": torch.ones(6, 4)})
    with pytest.raises(ValueError, match="conv_weight has 1 dimensions"):
        mix_with("auto")(**good | {"forward_params.conv_weight": torch.zeros(6)})
    with pytest.raises(ValueError, match="D is on meta, xz on cpu"):
        mix_with("auto")(**good | {"forward_params.D": torch.zeros(6, device="meta")})
    with pytest.raises(TypeError, match=r"x_proj has dtype torch.int64"):
        mix_with("auto")(**good | {"backward_params.x_proj": torch.zeros(10, 6, dtype=torch.int64)})
    stateless = {"forward_params.A": torch.zeros(6, 0), "forward_params.x_proj": torch.zeros(2, 6)}
    with pytest.raises(ValueError, match="no state"):
        mix_with("auto", A_is_log=True)(**good | stateless)


@without_shape_hook
def test_old_argument_names_still_work():
    tensors = inputs(1, 3)
    given = [
        ScanDirection(*(tensors[f"{name}_params.{field}"] for field in FIELDS)) for name in ("forward", "backward")
    ]
    with pytest.warns(DeprecationWarning, match=r"(ahead= is now forward|behind= is now backward)_params="):
        found = bidirectional_mix(tensors["xz"], ahead=given[0], behind=given[1])
    assert torch.equal(found, bidirectional_mix(tensors["xz"], *given))
