"""The numbers below a map."""

import numpy as np

from mambar.analysis.draw.norm_panels import summary


def test_only_a_quantity_without_negative_values_has_a_ratio_to_its_median():
    assert summary(np.array([[1.0, 2.0, 9.0]])) == ("median 2", "max 9 (4.5×)")
    assert summary(np.array([[-0.5, 0.006, 0.238]])) == ("min -0.5", "median 0.006", "max 0.238")
    assert summary(np.array([[np.nan]])) == ("no finite value",)
