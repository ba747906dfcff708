"""Start values against the statistics of a freshly built released model."""

import pytest
import torch

import golden_cases
from mambar.hub.convert import to_official
from mambar.models import VisionMamba, variant
from mambar.nn import MIXERS


@pytest.fixture(scope="module")
def released_names():
    torch.manual_seed(0)
    config = variant("mambar_tiny_patch16_224").replace(official_backward_bias=True)
    return to_official(VisionMamba(config).state_dict(), source="mamba-reg", config=config)


KINDS = golden_cases.manifest()["models"]["mambar_tiny_patch16_224"]["init_stats"]


@pytest.mark.parametrize("kind", KINDS)
def test_statistics(released_names, kind):
    expected = KINDS[kind]
    values = torch.cat([v.flatten() for k, v in released_names.items() if matches(k, kind)]).double()
    deviation = max(expected["std"], 1e-12)
    count = values.numel()
    assert abs(values.mean() - expected["mean"]) < 8 * deviation / count**0.5 + 1e-4 * abs(expected["mean"])
    # Two samples of this size: their deviations differ by a share of about 1 / sqrt(count).
    assert abs(values.std(correction=0) - expected["std"]) < (5 / count**0.5 + 1e-3) * expected["std"] + 1e-9
    assert abs(values.min() - expected["min"]) < 0.25 * abs(expected["min"]) + 1e-9
    assert abs(values.max() - expected["max"]) < 0.25 * abs(expected["max"]) + 1e-9


def matches(name, kind):
    start, _, end = kind.partition("*")
    return name.startswith(start) and name.endswith(end) if end else name == kind


def test_both_directions_alike_by_default():
    model = VisionMamba(variant("mambar_tiny_patch16_224").replace(depth=2))
    for block in model.blocks:
        for scan in (block.mixer.forward_scan, block.mixer.backward_scan):
            step = torch.nn.functional.softplus(scan.dt_proj.bias)
            assert step.min() >= 0.99e-3 and step.max() <= 0.101


@pytest.mark.parametrize("mixer", MIXERS)
def test_init_weights_initializes_every_parameter_of_an_empty_model(mixer):
    config = variant("mambar_tiny_patch16_224").replace(depth=2, register_reduction=2, mixer=mixer)
    torch.manual_seed(0)
    built = VisionMamba(config)
    with torch.device("meta"):
        model = VisionMamba(config)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.detach().fill_(float("nan"))
    model.init_weights()
    for (name, found), expected in zip(model.named_parameters(), built.state_dict().values(), strict=True):
        assert torch.isfinite(found).all(), name
        found = found.detach()
        count, deviation = found.numel(), float(expected.std(correction=0))
        assert abs(float(found.mean() - expected.mean())) <= 8 * deviation / count**0.5 + 1e-6, name
        assert abs(float(found.std(correction=0)) - deviation) <= (8 / count**0.5 + 1e-3) * deviation + 1e-9, name
    assert torch.isfinite(model(torch.randn(1, 3, 32, 32))).all()
