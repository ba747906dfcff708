"""Counted costs against built models and the published table."""

import pytest
import torch

from mambar.models import VARIANTS, VisionMamba, VisionMambaConfig, complexity

# REFERENCE: linear multiply-adds at 224 pixels, in 10^9.
PUBLISHED_GMACS = {
    "mambar_tiny_patch16_224": 1.37,
    "mambar_small_patch16_224": 5.12,
    "mambar_base_patch16_224": 19.8,
    "mambar_large_patch16_224": 71.0,
    "vim_tiny_patch16_224": 1.29,
    "vim_small_patch16_224": 4.85,
    "vim_base_patch16_224": 18.8,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_multiply_adds(name):
    assert complexity(VARIANTS[name]).linear_macs / 1e9 == pytest.approx(PUBLISHED_GMACS[name], rel=4e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"head": "avg", "num_registers": 0},
        {"num_classes": 0, "register_reduction": 4},
        {"num_registers": 1, "placement": "middle", "head": "widened"},
        {"proj_bias": True, "conv_bias": False, "d_conv": 3, "d_state": 8, "expand": 3, "dt_rank": 5},
        {"img_size": (40, 24), "in_chans": 1, "head": "register_mean"},
    ],
)
def test_parameters_equal_a_built_model(fields):
    config = VisionMambaConfig(**{"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2} | fields)
    with torch.device("meta"):
        built = VisionMamba(config)
    assert complexity(config).parameters == sum(p.numel() for p in built.parameters())


# Version 0.1 computed these numbers by a formula: parameters, length, linear_macs, scan_states.
FORMULA = {
    "mambar_tiny_patch16_224": (9264232, 208, 1365387264, 61341696),
    "mambar_small_patch16_224": (27801064, 208, 5121681408, 122683392),
    "mambar_base_patch16_224": (99301096, 208, 19810363392, 245366784),
    "mambar_large_patch16_224": (341222376, 212, 71015809024, 666894336),
    "vim_tiny_patch16_224": (7148008, 197, 1292717568, 58097664),
    "vim_small_patch16_224": (25796584, 197, 4851244032, 116195328),
    "vim_base_patch16_224": (97598440, 197, 18765723648, 232390656),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_of_the_variants(name):
    costs = complexity(VARIANTS[name])
    assert (costs.parameters, costs.length, costs.linear_macs, costs.scan_states) == FORMULA[name]
    assert costs.scan_flops == 9 * costs.scan_states


def test_counts_of_other_mixers():
    base = VARIANTS["mambar_tiny_patch16_224"]
    both, one, four = (complexity(base.replace(mixer=name)) for name in ("bidirectional", "forward", "cross_scan"))
    assert (one.scan_states, four.scan_states) == (both.scan_states // 2, 2 * both.scan_states)
    assert four.linear_macs - both.linear_macs == 2 * (both.linear_macs - one.linear_macs)
    assert four.parameters - both.parameters == 2 * (both.parameters - one.parameters)
