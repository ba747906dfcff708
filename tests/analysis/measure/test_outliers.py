import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from mambar.analysis.measure.outliers import (
    FixedThreshold,
    Gap,
    MedianDeviation,
    OutlierRule,
    TopShare,
    default_rules,
    median,
    outlier_mask,
    outlier_statistics,
)
from mambar.errors import InputError


def test_thresholds_by_hand():
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])
    assert FixedThreshold(value=50.0).threshold(norms) == 50
    # Median 3, deviations 2 1 0 1 97, their median 1.
    assert MedianDeviation(k=10.0).threshold(norms) == 13.0
    assert (norms > TopShare(share=0.4).threshold(norms)).tolist() == [False, False, False, True, True]


def test_median_of_an_even_number_is_between():
    assert median(torch.tensor([4.0, 1.0, 3.0, 2.0])) == 2.5 and math.isnan(median(torch.empty(0)))


def bimodal(high, count=40):
    generator = np.random.default_rng(0)
    low = generator.lognormal(math.log(30), 0.1, 2000)
    return torch.from_numpy(np.concatenate([low, generator.lognormal(math.log(high), 0.1, count)]))


def test_gap_lies_between_two_modes():
    limit = Gap().threshold(bimodal(300))
    assert 45 < limit < 230
    assert int((bimodal(300) > limit).sum()) == 40


def test_gap_finds_none_in_one_mode_or_in_a_stray():
    assert Gap().threshold(bimodal(30)) == math.inf
    assert Gap().threshold(bimodal(3000, count=1)) == math.inf
    assert Gap().threshold(torch.ones(10)) == math.inf
    assert Gap().threshold(torch.zeros(10)) == math.inf


def test_small_far_mode_is_found_beside_a_bumpy_bulk():
    counts = {8: 600, 10: 1000, 12: 900, 14: 960, 40: 20}
    norms = torch.cat([torch.full((count,), float(norm)) for norm, count in counts.items()])
    assert 14 < Gap().threshold(norms) < 40


def test_statistics_by_hand():
    norms = torch.ones(2, 3, 2, 2)
    norms[0, :, 0, 0] = 50  # the same place in all three images
    norms[0, 0, 1, 1] = 70  # and one more in the first
    norms[1, :, 0, 0] = 50
    first, second = outlier_statistics(norms, rule=FixedThreshold(value=10.0), layers=[7, 9]).layers
    assert (first.layer, second.layer) == (7, 9)
    assert first.share == pytest.approx(4 / 12) and first.threshold == 10
    assert first.share_deviation == pytest.approx(np.std([0.5, 0.25, 0.25]))
    assert (first.outlier_mean, first.rest_mean) == (55.0, 1.0)
    assert (first.maximum, first.median, first.ratio) == (70.0, 1.0, 70.0)
    # Three outliers share their place with both other images, one with none: (2 + 2 + 2 + 0) / (4 * 2).
    assert first.recurrence == pytest.approx(6 / 8)
    assert first.persistence == pytest.approx(3 / 4) and math.isnan(second.persistence)


def test_no_outliers_give_not_a_number_instead_of_an_error():
    (layer,) = outlier_statistics(torch.ones(1, 2, 2, 2), rule=FixedThreshold(value=10.0)).layers
    assert layer.share == 0 and math.isnan(layer.outlier_mean) and math.isnan(layer.recurrence)


def test_a_norm_that_is_not_finite_is_an_outlier():
    norms = torch.ones(1, 1, 2, 2)
    norms[0, 0, 0, 0] = math.inf
    assert outlier_mask(norms, MedianDeviation())[0, 0].tolist() == [[True, False], [False, False]]
    assert outlier_statistics(norms).layers[0].maximum == 1.0


def test_rules_are_rules_with_names_and_statistics_are_json():
    for rule in default_rules():
        assert isinstance(rule, OutlierRule) and rule.name
        json.dumps(asdict(outlier_statistics(torch.rand(2, 3, 4, 4), rule=rule)))


def test_top_share_out_of_range_is_refused():
    with pytest.raises(InputError, match="between 0 and 1"):
        TopShare(share=5.0)
