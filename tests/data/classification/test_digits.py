import numpy as np
import pytest
import torch

from mambar.data.classification.digits import Digits
from mambar.data.dataset import ImageDataset
from mambar.errors import DataError


@pytest.fixture(scope="module")
def splits():
    return Digits("train"), Digits("val")


def test_every_digit_is_in_one_split(splits):
    train, val = splits
    assert isinstance(train, ImageDataset)
    assert (len(train), len(val)) == (1438, 359)
    assert train.fingerprint() != val.fingerprint()
    everything = torch.cat([train.images, val.images])[:, 0].flatten(1)
    from sklearn.datasets import load_digits

    stored = np.rint(load_digits().data * (255 / 16)).astype(np.uint8)
    assert sorted(map(bytes, everything.numpy())) == sorted(map(bytes, stored))


def test_the_split_is_stratified_and_fixed(splits):
    train, val = splits
    shares = np.bincount(val.labels) / (np.bincount(val.labels) + np.bincount(train.labels))
    assert np.abs(shares - 0.2).max() < 0.005
    assert Digits("val").fingerprint() == val.fingerprint()


def test_a_sample_is_three_equal_channels(splits):
    sample = splits[0][5]
    assert sample.image.shape == (3, 8, 8) and sample.image.dtype == torch.uint8 and sample.mask is None
    assert torch.equal(sample.image[0], sample.image[2])
    assert splits[0].images.max() == 255 and splits[0].images.min() == 0
    assert splits[0].classes[sample.label] == str(sample.label)


def test_other_splits_are_refused():
    with pytest.raises(DataError, match="split='test'"):
        Digits("test")
