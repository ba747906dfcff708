"""Texture mosaics: exact masks, nothing shared between the splits."""

import numpy as np
import torch

from mambar.data.synthetic.mosaics import _ROWS, Mosaics


def test_same_index_same_mosaic():
    one, two = Mosaics(num_images=5), Mosaics(num_images=9)
    for index in range(5):
        assert torch.equal(one[index].image, two[index].image) and torch.equal(one[index].mask, two[index].mask)
    assert not torch.equal(one[0].image, one[1].image)
    assert one.fingerprint() != two.fingerprint() == Mosaics(num_images=9).fingerprint()


def test_splits_take_other_rows_of_the_photographs():
    train, val = (range(512)[_ROWS[split]] for split in ("train", "val"))
    assert not set(train) & set(val)
    # The largest patch, turned by any angle, stays inside.
    for split in ("train", "val"):
        for index in range(30):
            sample = Mosaics(split=split, img_size=120, cells=(1, 3))[index]
            assert sample.image.shape == (3, 120, 120) and int(sample.mask.max()) < 3


def test_every_class_occurs_about_equally():
    masks = torch.stack([Mosaics(img_size=48)[index].mask for index in range(60)])
    shares = np.bincount(masks.numpy().ravel(), minlength=3) / masks.numel()
    assert (abs(shares - 1 / 3) < 0.12).all()
