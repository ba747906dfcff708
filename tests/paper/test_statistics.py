"""Intervals and paired differences, by hand."""

import numpy as np
import pytest

from mambar.paper.statistics import half_width, holm, paired


def test_half_width():
    # Mean 2, standard deviation 1, three values: 4.3026527 / sqrt(3).
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.30265273 / 3**0.5)
    assert half_width([1.0]) is None


def test_quantiles_agree_with_scipy():
    from scipy.stats import t

    for count in (2, 6, 11, 31):
        values = [float(value) for value in range(count)]
        expected = t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5
        assert half_width(values) == pytest.approx(expected, rel=1e-9)


def test_paired():
    found = paired([2.0, 3.0, 4.5], [1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(3.5 / 3)
    assert found.decided and found.seeds == 3
    assert not paired([1.0, 3.0], [2.0, 2.0]).decided
    assert paired([1.0], [1.0]) is None


def test_p_values_agree_with_scipy():
    from scipy.stats import ttest_rel

    ours, theirs = [2.0, 3.0, 4.5, 3.1], [1.0, 2.6, 3.0, 3.4]
    assert paired(ours, theirs).p_value == pytest.approx(ttest_rel(ours, theirs).pvalue, rel=1e-9)
    assert paired([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
    assert paired([2.0, 3.0], [1.0, 2.0]).p_value == 0.0


def test_holm_corrects_from_the_smallest_on():
    # The example by hand: 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04 may not be below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
