"""The mixer against the released code, parameter by parameter."""

import pytest
import torch

import golden_cases
from mambar.hub.convert import released_mixer_names
from mambar.nn.mixer import MambaMixer
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
