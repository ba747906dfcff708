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
