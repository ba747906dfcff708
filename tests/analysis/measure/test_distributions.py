import math

import numpy as np
import pytest
import torch

from mambar.analysis.measure.distributions import (
    DistributionCounter,
    bin_edges,
    count_norms,
    norm_distributions,
)
from mambar.errors import InputError


def norms(seed=0, size=5000):
    return torch.from_numpy(np.random.default_rng(seed).lognormal(3.0, 0.4, (2, size)))


def test_counts_equal_numpys_histogram():
    values = norms()
    expected = np.stack([np.histogram(layer, bin_edges())[0] for layer in values.numpy()])
    assert np.array_equal(count_norms(values).numpy(), expected)


def test_known_numbers():
    (found,) = norm_distributions(torch.tensor([[1.0, 2.0, 2.0, 2.0, 9.0, math.inf, math.nan]]))
    assert (found.count, found.non_finite, found.minimum, found.maximum) == (5, 2, 1.0, 9.0)
    assert found.mean == pytest.approx(3.2)
    assert found.median == pytest.approx(2.0, rel=0.012) and found.mode == pytest.approx(2.0, rel=0.045)
    assert found.quantile(1.0) == 9.0 and found.quantile(0.0) == 1.0


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_quantiles_are_within_a_bin(share):
    values = norms()
    for layer, found in zip(values, norm_distributions(values), strict=True):
        assert found.quantile(share) == pytest.approx(float(np.quantile(layer.numpy(), share)), rel=0.015)


def test_density_integrates_to_one():
    edges, density = norm_distributions(norms())[0].density()
    assert float((np.diff(edges) * density).sum()) == pytest.approx(1.0)


def test_batches_add_up_to_the_whole():
    values = norms()
    counter = DistributionCounter(2)
    for part in values.split(777, dim=1):
        counter.add(part)
    counter.add(values[:, :0])
    for left, right in zip(counter.result(), norm_distributions(values), strict=True):
        assert np.array_equal(left.counts, right.counts)
        assert left.mean == pytest.approx(right.mean) and left.maximum == right.maximum


def test_zero_and_huge_norms_are_counted_in_the_end_bins():
    (found,) = norm_distributions(torch.tensor([[0.0, 1e30]], dtype=torch.float64))
    assert found.counts[0] == 1 and found.counts[-1] == 1 and found.maximum == 1e30


def test_nothing_gives_not_a_number():
    (found,) = norm_distributions(torch.empty(1, 0))
    assert found.count == 0 and math.isnan(found.median) and math.isnan(found.mode) and math.isnan(found.mean)
    assert found.to_dict()["count"] == 0


def test_wrong_share_and_bins_are_refused():
    (found,) = norm_distributions(torch.ones(1, 3))
    with pytest.raises(InputError, match="share=2"):
        found.quantile(2.0)
    with pytest.raises(InputError, match="must divide 64"):
        found.density(bins_per_octave=10)
