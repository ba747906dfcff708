"""Start values against the statistics of a freshly built released model."""

import pytest
import torch

import golden_cases
from mambar.hub.convert import to_official
from mambar.models import VisionMamba, variant
from mambar.nn import HEADS, MIXERS


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


def test_both_directions_have_the_same_step_sizes_by_default():
    model = VisionMamba(variant("mambar_tiny_patch16_224").replace(depth=2))
    for block in model.blocks:
        for scan in (block.mixer.forward_scan, block.mixer.backward_scan):
            step = torch.nn.functional.softplus(scan.dt_proj.bias)
            assert step.min() >= 0.99e-3 and step.max() <= 0.101


@pytest.mark.parametrize(
    "fields",
    [
        *({"mixer": mixer} for mixer in MIXERS),
        *({"head": head, "num_registers": 1} for head in HEADS),
        {"num_classes": 0, "proj_bias": True, "conv_bias": False, "official_backward_bias": True},
    ],
    ids=str,
)
def test_init_weights_gives_an_empty_model_the_values_of_the_constructor(fields):
    fields = {"depth": 2, "img_size": 32, "embed_dim": 32, "register_reduction": 2} | fields
    config = variant("mambar_tiny_patch16_224").replace(**fields)
    torch.manual_seed(0)
    built = VisionMamba(config)
    with torch.device("meta"):
        model = VisionMamba(config)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.detach().fill_(float("nan"))
    torch.manual_seed(0)
    model.init_weights()
    for (name, found), expected in zip(model.named_parameters(), built.parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert torch.isfinite(model(torch.randn(1, 3, 32, 32))).all()
