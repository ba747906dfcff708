import json
import math
from dataclasses import asdict

import pytest
import torch

from mambar.analysis.measure.local_probes import LocalTokens, local_probes, local_tokens, patch_pixels
from mambar.analysis.measure.outliers import FixedThreshold
from mambar.errors import InputError


def test_patches_hold_their_pixels_in_row_order():
    images = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    patches = patch_pixels(images, 2)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[1, 4], images[1, :, 2:4, 2:4].flatten())


def known(count=30, grid=(3, 3)):
    """Tokens that hold their place and pixels, but for the last place: an outlier of noise."""
    generator = torch.Generator().manual_seed(0)
    patches = grid[0] * grid[1]
    pixels = torch.randn(count, patches, 4, generator=generator)
    tokens = torch.cat([torch.eye(patches).expand(count, -1, -1), pixels], dim=2)
    tokens[:, -1] = torch.randn(count, patches + 4, generator=generator)
    norms = torch.ones(count, patches)
    norms[:, -1] = 100
    return LocalTokens(tokens=tokens, pixels=pixels, norms=norms, grid=grid)


def test_normal_tokens_know_their_patch_and_outliers_do_not():
    found = local_probes(known(), rule=FixedThreshold(value=10.0))
    normal, outlier, every = found.groups
    assert (normal.group, outlier.group, every.group) == ("normal", "outlier", "all")
    assert (normal.num_tokens, outlier.num_tokens, every.num_tokens) == (15 * 8, 15, 15 * 9)
    assert normal.position_accuracy > 0.95 and normal.explained > 0.6
    assert outlier.position_accuracy < 0.9 and outlier.explained < 0.3
    assert normal.pixel_error < outlier.pixel_error and normal.position_distance < outlier.position_distance
    assert found.chance == pytest.approx(1 / 9)
    json.dumps(asdict(found))


def test_no_outliers_give_not_a_number():
    outlier = local_probes(known(), rule=FixedThreshold(value=1e9)).groups[1]
    assert outlier.num_tokens == 0 and math.isnan(outlier.position_accuracy) and math.isnan(outlier.pixel_error)


def test_tokens_are_gathered_with_norms_of_the_ranking_tensor(fake_model):
    images = torch.rand(3, 3, 4, 6)
    found = local_tokens(fake_model, images.split(2))
    assert found.grid == (2, 3) and found.tokens.shape == (3, 6, 4)
    assert torch.allclose(found.norms, 10 * found.tokens.norm(dim=-1))
    assert torch.equal(found.pixels, patch_pixels(images, 2))


def test_one_image_is_too_few(fake_model):
    with pytest.raises(InputError, match="2 images"):
        local_probes(local_tokens(fake_model, [torch.rand(1, 3, 4, 4)]))
