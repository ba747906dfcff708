import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambar.data.dataset import ImageDataset, Subset, stratified_split
from mambar.data.synthetic.shapes import Shapes
from mambar.errors import DataError

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)


def test_a_subset_is_a_dataset():
    whole = Shapes(img_size=8, num_images=10)
    part = Subset(whole, [7, 3], name="two")
    assert isinstance(part, ImageDataset)
    assert len(part) == 2 and part.classes == whole.classes
    assert part[0].label == 7 and part[1].label == 3
    assert part.fingerprint() != Subset(whole, [3, 7], name="two").fingerprint() != whole.fingerprint()


@pytest.mark.parametrize("indices", [[-1], [10], [0, 11]])
def test_a_subset_stays_inside(indices):
    with pytest.raises(DataError, match="use 0 to 9"):
        Subset(Shapes(img_size=8, num_images=10), indices, name="x")


@given(LABELS, st.floats(0.05, 0.95), st.integers(0, 10))
def test_a_split_takes_its_share_of_every_class(labels, fraction, seed):
    rest, part = stratified_split(labels, fraction=fraction, seed=seed)
    assert sorted([*rest, *part]) == list(range(len(labels)))
    for label in np.unique(labels):
        count, taken = (labels == label).sum(), (labels[part] == label).sum()
        assert taken == 0 if count < 2 else 1 <= taken < count
        assert abs(taken - fraction * count) <= 1
    again = stratified_split(labels, fraction=fraction, seed=seed)
    assert np.array_equal(part, again[1])


def test_the_seed_changes_the_split():
    labels = np.zeros(50, dtype=int)
    parts = {tuple(stratified_split(labels, fraction=0.2, seed=seed)[1]) for seed in range(5)}
    assert len(parts) == 5


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_is_between_0_and_1(fraction):
    with pytest.raises(DataError, match="fraction="):
        stratified_split(np.zeros(4, dtype=int), fraction=fraction, seed=0)
