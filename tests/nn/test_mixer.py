"""The mixer against the released code, parameter by parameter."""

import copy

import pytest
import torch

import golden_cases
from mambar.errors import InputError
from mambar.hub.convert import released_mixer_names
from mambar.nn.mixer import MIXERS, MambaMixer, transpose_patches
from mambar.ops import use_backend

TOLERANCE = {torch.float64: (1e-11, 1e-11), torch.float32: (2e-5, 5e-5)}


def golden_mixer(case, dtype):
    config = case.config
    mixer = MambaMixer(
        config["d_model"],
        d_state=config["d_state"],
        d_conv=config["d_conv"],
        expand=config["expand"],
        dt_rank=config["dt_rank"],
        proj_bias=config["bias"],
        conv_bias=config["conv_bias"],
    ).to(dtype)
    names = released_mixer_names()
    state = {name: case[f"param/{names[name]}"].to(dtype) for name in mixer.state_dict()}
    state = {k: v.squeeze(1) if k.endswith("conv_weight") else v for k, v in state.items()}
    mixer.load_state_dict(state)
    assert len(state) == sum(name.startswith("param/") for name in case.tensors)
    return mixer, names


@pytest.mark.parametrize("backend", ["reference", "chunked", "doubling"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", golden_cases.cases("mixer"), ids=str)
def test_golden_mixer(case, dtype, backend):
    mixer, names = golden_mixer(case, dtype)
    tokens = case["input"].to(dtype).requires_grad_()
    with use_backend(backend):
        output = mixer(tokens)
        (output * case["loss_weight"].to(dtype)).sum().backward()
    near_output, near_gradient = TOLERANCE[dtype]
    golden_cases.assert_near(output, case["output"], near_output)
    golden_cases.assert_near(tokens.grad, case["grad_input"], near_gradient)
    for name, parameter in mixer.named_parameters():
        expected = case[f"grad/{names[name]}"]
        golden_cases.assert_near(parameter.grad, expected.reshape(parameter.shape), near_gradient)


def test_average_halves_the_sum():
    torch.manual_seed(0)
    mixer = MambaMixer(16, dt_rank=1)
    tokens = torch.randn(1, 5, 16)
    halved = mixer(tokens)
    mixer.average_directions = False
    torch.testing.assert_close(mixer(tokens), 2 * halved)


def test_half_precision_parameters_keep_decay_in_float32():
    mixer = MambaMixer(16, dt_rank=1).to(torch.bfloat16)
    assert mixer.forward_scan.weights().A.dtype == torch.float32
    assert MambaMixer(16, dt_rank=1).double().forward_scan.weights().A.dtype == torch.float64


GRID, POSITIONS = (3, 2), (2, 5)


def new_mixer(name):
    torch.manual_seed(0)
    mixer = MIXERS[name](16, dt_rank=1, d_state=4).double()
    mixer.init_weights(depth=1)
    return mixer, torch.randn(1, 8, 16, dtype=torch.float64)


def influence(mixer, tokens):
    """influence[i, j]: whether output i depends on input j."""
    jacobian = torch.autograd.functional.jacobian(lambda x: mixer(x, GRID, POSITIONS).sum((0, 2)), tokens)
    return jacobian.abs().sum((1, 3)) > 0


def test_forward_mixer_is_causal():
    assert torch.equal(influence(*new_mixer("forward")), torch.ones(8, 8).tril().bool())


@pytest.mark.parametrize("name", ["bidirectional", "cross_scan"])
def test_every_token_receives_context_from_all_tokens(name):
    assert influence(*new_mixer(name)).all()


def test_transpose_patches_keeps_registers():
    sequence = torch.tensor([0.0, 1, 100, 2, 3, 101, 4, 5])[None, :, None]  # grid (3, 2): rows 0 1, 2 3, 4 5
    columns = transpose_patches(sequence, GRID, POSITIONS)
    assert columns.flatten().tolist() == [0, 2, 100, 4, 1, 101, 3, 5]
    assert torch.equal(transpose_patches(columns, (2, 3), POSITIONS), sequence)


def test_cross_scan_of_the_transposed_grid_is_the_cross_scan_with_swapped_orders():
    mixer, tokens = new_mixer("cross_scan")
    swapped = copy.deepcopy(mixer)
    for way in ("forward", "backward"):
        setattr(swapped, f"{way}_scan", getattr(mixer, f"column_{way}_scan"))
        setattr(swapped, f"column_{way}_scan", getattr(mixer, f"{way}_scan"))
    there = swapped(transpose_patches(tokens, GRID, POSITIONS), (2, 3), POSITIONS)
    expected = transpose_patches(mixer(tokens, GRID, POSITIONS), GRID, POSITIONS)
    torch.testing.assert_close(there, expected, rtol=1e-10, atol=1e-12)


def test_cross_scan_needs_the_grid():
    mixer, tokens = new_mixer("cross_scan")
    with pytest.raises(InputError, match="needs the patch grid"):
        mixer(tokens)
