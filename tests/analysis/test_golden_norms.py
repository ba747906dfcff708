"""The analysis of whole models against the released code's numbers."""

import pytest
import torch

import golden_cases
from mambar.analysis import register_norms, token_norms
from mambar.analysis.measure.collect import collect_norms
from mambar.analysis.measure.feature_maps import feature_maps
from mambar.analysis.measure.register_maps import register_maps
from mambar.hub.convert import convert_checkpoint, detect_source, infer_config
from mambar.models import VisionMamba

CASES = golden_cases.cases("mambar_model") + golden_cases.cases("vim_model")


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture
def model(case):
    released = {name.removeprefix("param/"): case[name] for name in case.tensors if name.startswith("param/")}
    height, width = case.config["img_size"]
    config = infer_config(released, img_size=(height, width)).replace(norm_eps=case.config["norm_eps"])
    model = VisionMamba(config).double().eval()
    model.load_state_dict(convert_checkpoint(released, source=detect_source(released), config=config))
    return model


def split(case, norms, grid):
    """Stored values (..., L) in sequence order as maps and registers, by the stored layout."""
    registers = torch.as_tensor(case.info["layout"]["cls_positions"])
    others = [index for index in range(norms.shape[-1]) if index not in registers.tolist()]
    return norms[..., others].unflatten(-1, grid), norms[..., registers]


@pytest.mark.parametrize("tensor", ["residual", "mixer", "normed"])
def test_norms_are_those_of_the_released_code(case, model, tensor):
    images = case["input"].double()
    stored = {
        "residual": lambda: case["residual_norm"][1:],
        "mixer": lambda: case["mixer_out_norm"],
        "normed": lambda: case["tokens_norm"][None],
    }[tensor]()
    layers = [-1] if tensor == "normed" else None
    found = token_norms(model, images, layers, tensor=tensor)
    maps, registers = split(case, stored, tuple(found.shape[2:]))
    golden_cases.assert_near(found, maps, 1e-10)
    golden_cases.assert_near(register_norms(model, images, layers, tensor=tensor), registers, 1e-10)


def test_collected_norms_are_those_of_the_released_code(case, model):
    images = case["input"].double()
    found = collect_norms(model, images.split(1), keep=len(images))
    maps, registers = split(case, case["residual_norm"][1:], tuple(found.maps.shape[2:]))
    golden_cases.assert_near(found.maps, maps, 1e-10)
    golden_cases.assert_near(found.register_norms, registers, 1e-10)
    golden_cases.assert_near(found.mean_map, maps.mean(1), 1e-10)
    for layer, distribution in enumerate(found.patches):
        assert distribution.count == maps[layer].numel()
        assert distribution.maximum == pytest.approx(float(maps[layer].max()), rel=1e-10)


def test_maps_compare_the_released_tokens(case, model):
    images = case["input"].double()
    tokens = case["tokens_norm_f"]  # (B, L, D)
    where = torch.as_tensor(case.info["layout"]["cls_positions"])
    others = [index for index in range(tokens.shape[1]) if index not in where.tolist()]
    patches, registers = tokens[:, others], tokens[:, where]
    l2 = (patches - registers.mean(1, keepdim=True)).norm(dim=-1)
    found = feature_maps(model, images, [-1], vector="register_mean", metric="l2")[0]
    golden_cases.assert_near(found.flatten(1), l2, 1e-10)
    dot = torch.einsum("bpd,bnd->bnp", patches, registers)
    golden_cases.assert_near(register_maps(model, images, [-1], metric="dot")[0].flatten(2), dot, 1e-10)
