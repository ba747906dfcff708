"""Every backend of the norm against the float64 reference, and the promises of the interface."""

import pytest
import torch

from golden_cases import assert_near, cases
from mambar.ops import add_rms_norm, rms_norm
from op_inputs import assert_same, backend_cases, relative_error, to_double, with_gradients, without_shape_hook

EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}


def inputs(*shape, dtype=torch.float32, device="cpu", residual=True, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    tensors = {"x": draw(*shape).to(device, dtype)}
    if residual:
        tensors["residual"] = draw(*shape).to(device, wide)
    return tensors | {"weight": (draw(shape[-1]) / scale).to(device, wide)}


def norm_with(backend):
    return lambda **tensors: (add_rms_norm if "residual" in tensors else rms_norm)(**tensors, backend=backend)


def assert_right(tensors, backend, dtype):
    found = with_gradients(norm_with(backend), tensors)
    assert_same(found, with_gradients(norm_with("reference"), to_double(tensors)), dtype)
    return found


@pytest.mark.parametrize("case", cases("rmsnorm"), ids=str)
@pytest.mark.parametrize(
    "dtype, backend, device",
    [
        pytest.param(dtype, *case.values, id=f"{dtype}-{case.id}".removeprefix("torch."), marks=case.marks)
        for dtype in EXACT
        for case in backend_cases("rms_norm", dtype)
    ],
)
def test_golden_values_of_the_released_code(case, dtype, backend, device):
    names = [name for name in ("x", "residual", "weight") if name in case]
    leaves = {name: case[name].to(device, dtype).clone().requires_grad_() for name in names}
    weights = [case[name].to(device, dtype) for name in ("loss_weight", "loss_weight_residual")]
    if "residual" in leaves:
        out, total = add_rms_norm(**leaves, backend=backend)
    else:
        out, total = rms_norm(**leaves, backend=backend), leaves["x"]
    ((out * weights[0]).sum() + (total * weights[1]).sum()).backward()
    assert_near(out.cpu(), case["out"], EXACT[dtype])
    assert_near(total.cpu(), case["residual_out"], EXACT[dtype])
    for name, leaf in leaves.items():
        assert_near(leaf.grad.cpu(), case[f"grad/{name}"], EXACT[dtype])


@pytest.mark.parametrize("shape", [(2,), (3, 4), (5, 7), (2, 13, 192), (2, 3, 4, 33), (209, 1024)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("backend, device", backend_cases("rms_norm"))
def test_any_shape(backend, device, shape, residual):
    assert_right(inputs(*shape, device=device, residual=residual), backend, torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1,), (3, 4), (5, 0, 7), (2, 13, 192), (2, 3, 4, 33), (209, 1024)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("backend, device", backend_cases("rms_norm"))
def test_any_shape_without_gradients(backend, device, shape, residual):
    tensors = inputs(*shape, device=device, residual=residual)
    odd = {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    right = norm_with("reference")(**to_double(tensors))
    for given in (tensors, odd):
        found = norm_with(backend)(**given)
        for output, expected in zip(found, right, strict=True) if residual else [(found, right)]:
            assert output.shape == expected.shape
            assert not output.numel() or relative_error(output, expected) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("backend, device", backend_cases("rms_norm", torch.bfloat16))
def test_a_16_bit_branch_and_a_float32_stream(backend, device, dtype, residual):
    found = assert_right(inputs(2, 13, 48, dtype=dtype, device=device, residual=residual), backend, dtype)
    assert found["output 0"].dtype == dtype
    if residual:
        assert found["output 1"].dtype == torch.float32


@pytest.mark.parametrize("backend, device", backend_cases("rms_norm"))
def test_a_float32_stream_is_normalized_to_16_bits_in_one_pass(backend, device):
    tensors = inputs(2, 13, 48, device=device, residual=False)
    found = with_gradients(lambda **t: rms_norm(**t, dtype=torch.bfloat16, backend=backend), tensors)
    wide = with_gradients(norm_with(backend), tensors)
    assert torch.equal(found["output 0"], wide["output 0"].bfloat16())
    expected = with_gradients(lambda **t: rms_norm(**t, backend="reference"), to_double(tensors))
    for name, value in found.items():
        assert value.dtype == (torch.bfloat16 if name == "output 0" else torch.float32)
        assert relative_error(value, expected[name]) <= 4e-3, name


@pytest.mark.rel
@pytest.mark.parametrize("backend, device", backend_cases("rms_norm"))
def test_extremes_are_finite(backend, device):
    for scale in (1e-30, 1e-3, 1e4):
        assert_right(inputs(3, 40, device=device, scale=scale), backend, torch.float32)
    zero = {"x": torch.zeros(2, 8, device=device), "weight": torch.ones(8, device=device)}
    found = with_gradients(norm_with(backend), zero)
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@pytest.mark.rel
@pytest.mark.parametrize("backend, device", backend_cases("rms_norm"))
def test_nan_stays_in_its_row(backend, device):
    tensors = inputs(2, 5, 8, device=device, residual=False)
    tensors["x"][1, 2, 3] = float("nan")
    y = rms_norm(**tensors, backend=backend)
    assert bool(y[1, 2].isnan().all())
    y[1, 2] = 0
    assert bool(y.isfinite().all())


@pytest.mark.parametrize("backend, device", backend_cases("rms_norm"))
def test_every_element_is_written(backend, device, nan_memory):
    found = with_gradients(norm_with(backend), inputs(3, 50, 33, device=device))
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@pytest.mark.parametrize("backend, device", backend_cases("rms_norm"))
def test_any_memory_layout(backend, device):
    tensors = inputs(2, 6, 8, device=device)
    right = norm_with("reference")(**tensors)
    odd = dict(tensors)
    wide = tensors["x"].new_full((2, 6, 20), float("nan"))
    wide[..., 5:13] = tensors["x"]
    odd["x"] = wide[..., 5:13]
    odd["residual"] = tensors["residual"].transpose(1, 2).contiguous().transpose(1, 2)
    for found, expected in zip(norm_with(backend)(**odd), right, strict=True):
        assert relative_error(found, expected) <= 1e-6


@pytest.mark.parametrize("backend, device", backend_cases("rms_norm"))
def test_empty_rows_give_an_empty_output(backend, device):
    assert rms_norm(torch.zeros(2, 0, 8, device=device), torch.ones(8, device=device), backend=backend).shape == (
        2,
        0,
        8,
    )
    normed, total = add_rms_norm(*torch.zeros(2, 0, 3, 8, device=device), torch.ones(8, device=device), backend=backend)
    assert normed.shape == total.shape == (0, 3, 8)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("backend, device", backend_cases("rms_norm", torch.float64))
def test_gradients_are_those_of_finite_differences(backend, device, residual):
    tensors = inputs(2, 3, 4, dtype=torch.float64, device=device, residual=residual)
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    function = add_rms_norm if residual else rms_norm
    assert torch.autograd.gradcheck(lambda *t: function(*t, backend=backend), leaves)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(lambda *t: function(*t, backend=backend), leaves)


@without_shape_hook
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("backend, device", [*backend_cases("rms_norm", kernels_only=True), ("stub", "cpu")])
def test_opcheck_and_a_full_graph(stub_kernels, fresh_compiler, backend, device, residual):
    tensors = inputs(5, 8, device=device, residual=residual)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    arguments = (leaves["x"], leaves.get("residual"), leaves["weight"], 1e-5, torch.float32, backend)
    torch.library.opcheck(torch.ops.mambar.rms_norm.default, arguments)
    compiled = torch.compile(norm_with(backend), fullgraph=True, backend="aot_eager")
    tensors = inputs(2, 5, 8, device=device, residual=residual)
    expected = with_gradients(norm_with("reference"), to_double(tensors))
    assert_same(with_gradients(compiled, tensors), expected, torch.float32)
    assert_right(tensors, backend, torch.float32)


@pytest.mark.parametrize("index", [0, 1])
def test_only_one_of_the_two_outputs_may_be_used(stub_kernels, index):
    tensors = inputs(2, 5, 8)

    def used(backend):
        return lambda **t: add_rms_norm(**t, backend=backend)[index]

    found = with_gradients(used("stub"), tensors)
    assert_same(found, with_gradients(used("reference"), to_double(tensors)), torch.float32)


@without_shape_hook
def test_bad_input_is_refused_with_the_argument_named():
    with pytest.raises(ValueError, match="weight has dim 7"):
        rms_norm(torch.zeros(2, 8), torch.ones(7))
    with pytest.raises(ValueError, match="x has axis 0 2, the other tensors have 3"):
        add_rms_norm(torch.zeros(2, 8), torch.zeros(3, 8), torch.ones(8))
    with pytest.raises(TypeError, match="x has dtype"):
        rms_norm(torch.zeros(2, 8, dtype=torch.int32), torch.ones(8))
