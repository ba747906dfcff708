import numpy as np
import pytest
import torch

from mambar.analysis.measure.collect import collect_norms
from mambar.analysis.measure.norms import register_norms, token_norms
from mambar.errors import InputError
from op_inputs import without_shape_hook


def images(count=10, size=(4, 6)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def test_all_images_are_counted_and_kept_ones_have_their_maps(fake_model):
    given, done = images(), []
    found = collect_norms(fake_model, given.split(3), [0, -1], keep=4, progress=done.append)
    expected = token_norms(fake_model, given, [0, -1])
    assert (found.layers, found.num_images, done) == ((0, 2), 10, [3, 6, 9, 10])
    assert len(found.kept) == 4 and list(found.kept) == sorted(found.kept)
    assert torch.equal(found.maps, expected[:, list(found.kept)])
    assert torch.equal(found.register_norms, register_norms(fake_model, given, [0, -1])[:, list(found.kept)])
    assert torch.allclose(found.mean_map, expected.double().mean(1))
    assert found.patches[1].count == 10 * 6 and found.registers[1].count == 10 * 2
    assert found.patches[1].maximum == float(expected[1].max())


def test_batch_size_changes_nothing(fake_model):
    first, second = (collect_norms(fake_model, images().split(size), keep=5) for size in (2, 7))
    assert first.kept == second.kept and torch.equal(first.maps, second.maps)
    for left, right in zip(first.patches, second.patches, strict=True):
        assert np.array_equal(left.counts, right.counts)


def test_seed_draws_other_images(fake_model):
    kept = {collect_norms(fake_model, images().split(32), keep=5, seed=seed).kept for seed in range(5)}
    assert len(kept) > 1


def test_nothing_kept_still_counts(fake_model):
    found = collect_norms(fake_model, images().split(32), keep=0)
    assert found.kept == () and found.maps.shape == (3, 0, 2, 3) and found.patches[0].count == 60


@without_shape_hook
def test_no_images_and_mixed_sizes_are_refused(fake_model):
    with pytest.raises(InputError, match="no images"):
        collect_norms(fake_model, [])
    with pytest.raises(InputError, match="2 × 2 patches, another 2 × 3"):
        collect_norms(fake_model, [images(), images(2, (4, 4))])
