import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambar.data.synthetic.outlines import OUTLINES, area

NAMES = sorted(OUTLINES)


def grid(steps=400, reach=1.3):
    axis = np.linspace(-reach, reach, steps)
    return axis[None, :], axis[:, None]


@pytest.mark.parametrize("name", NAMES)
def test_an_outline_lies_in_the_unit_circle(name):
    x, y = grid()
    inside = OUTLINES[name](x, y) < 0
    assert not inside[np.hypot(x, y) > 1.001].any()
    assert 0.5 < area(name) < 3.2
    assert area(name) == pytest.approx(inside.mean() * 2.6**2, rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_distances_are_right_to_first_order_at_the_edge(name):
    x, y = grid(1300)
    distance = OUTLINES[name](x, y)
    step = 2.6 / 1299
    rise = np.hypot(*np.gradient(distance, step))
    edge = np.abs(distance) < 0.02
    # Corners aside, one unit of place is one unit of distance.
    assert np.quantile(np.abs(rise[edge] - 1), 0.85) < 0.12


@given(st.sampled_from(NAMES), st.floats(-3, 3), st.floats(-3, 3))
def test_distances_are_finite_everywhere(name, x, y):
    assert np.isfinite(OUTLINES[name](np.array([x]), np.array([y]))).all()


def test_the_disc_is_exact():
    assert area("disc") == pytest.approx(np.pi, rel=1e-3)
