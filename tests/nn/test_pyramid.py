"""Four maps of one stride become strides 4, 8, 16, 32."""

import pytest
import torch

from mambar.errors import InputError
from mambar.nn.pyramid import MAP_NORMS, FeaturePyramid, map_norm


@pytest.mark.parametrize("norm", MAP_NORMS)
@pytest.mark.parametrize(
    ("patch_size", "sides"),
    [(4, [6, 3, 2, 1]), (8, [12, 6, 3, 2]), (14, [24, 12, 6, 3]), (16, [24, 12, 6, 3]), (32, [48, 24, 12, 6])],
)
def test_level_sizes(patch_size, sides, norm):
    maps = [torch.randn(2, 8, 6, 6) for _ in range(4)]
    levels = FeaturePyramid(8, patch_size, norm=norm)(maps)
    assert [tuple(level.shape) for level in levels] == [(2, 8, side, side) for side in sides]


def test_strides_for_patches_of_16_equal_the_published_ones():
    pyramid = FeaturePyramid(8, 16, norm="batch").eval()
    maps = [torch.randn(1, 8, 4, 4) for _ in range(4)]
    finest, fine, same, coarse = pyramid(maps)
    first, norm, _, second = pyramid.levels[0]
    by_hand = second(torch.nn.functional.gelu(norm(first(maps[0]))))
    torch.testing.assert_close(finest, by_hand)
    torch.testing.assert_close(fine, pyramid.levels[1][0](maps[1]))
    assert same is maps[2]
    torch.testing.assert_close(coarse, maps[3].reshape(1, 8, 2, 2, 2, 2).amax((3, 5)))


def test_one_patch_is_enough():
    maps = [torch.randn(1, 8, 1, 3) for _ in range(4)]
    assert FeaturePyramid(8, 16)(maps)[3].shape == (1, 8, 1, 2)


def test_group_norm_is_independent_of_other_images():
    norm = map_norm("group", 48)
    maps = torch.randn(3, 48, 5, 5)
    torch.testing.assert_close(norm(maps)[:1], norm(maps[:1]))


@pytest.mark.parametrize(("dim", "groups"), [(4, 1), (8, 1), (64, 8), (192, 24), (384, 32), (512, 32), (1024, 32)])
def test_group_norm_does_not_zero_a_single_cell(dim, groups):
    norm = map_norm("group", dim)
    assert norm.num_groups == groups
    assert norm(torch.randn(1, dim, 1, 1)).abs().sum() > 0


def test_unknown_choices_are_refused():
    with pytest.raises(InputError, match="choose one of group, batch"):
        FeaturePyramid(8, 16, norm="layer")
    with pytest.raises(InputError, match="takes 4 maps; got 3"):
        FeaturePyramid(8, 16)([torch.zeros(1, 8, 2, 2)] * 3)
