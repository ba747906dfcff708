"""Images on plain canvases: the same every time, whole, and with a mask that says where."""

import pytest
import torch

from mambar.data.classification.digits import Digits
from mambar.data.registry import open_dataset
from mambar.data.synthetic.canvas import CanvasDataset
from mambar.errors import DataError, ImageError


def test_image_lies_where_the_mask_says():
    plain, pasted = Digits("val"), CanvasDataset(Digits("val"), "val", size=20)
    places = set()
    for index in range(12):
        before, after = plain[index], pasted[index]
        assert after.image.shape[1:] == (20, 20) == after.mask.shape
        rows, cols = (after.mask > 0).nonzero(as_tuple=True)
        assert set(after.mask.unique().tolist()) == {0, before.label + 1}
        top, left = int(rows.min()), int(cols.min())
        height, width = before.image.shape[1:]
        assert torch.equal(after.image[:, top : top + height, left : left + width], before.image)
        # Around it there is one color.
        assert len(after.image[:, after.mask == 0].unique(dim=1).T) == 1
        assert int((after.mask > 0).sum()) == height * width
        assert after.label == before.label
        places.add((top, left))
    assert len(places) > 6


def test_split_and_index_fix_the_canvas_and_the_fingerprint_tells_it():
    first, second = (CanvasDataset(Digits("val"), "val", size=20) for _ in range(2))
    assert torch.equal(first[3].image, second[3].image)
    assert not torch.equal(first[3].mask, CanvasDataset(Digits("val"), "val", size=20, seed=1)[3].mask)
    prints = {
        first.fingerprint(),
        CanvasDataset(Digits("val"), "val", size=24).fingerprint(),
        CanvasDataset(Digits("val"), "val", size=20, seed=1).fingerprint(),
        Digits("val").fingerprint(),
    }
    assert len(prints) == 4


def test_the_catalog_pastes_any_set():
    found = open_dataset("digits", "train", limit=5, canvas=20)
    assert len(found) == 5 and found[0].image.shape[1:] == (20, 20) and found.classes == Digits("train").classes
    with pytest.raises(DataError, match="canvas=0"):
        open_dataset("digits", "train", canvas=0)
    with pytest.raises(DataError, match=r"no image in digits can be read; .* more than the canvas=4"):
        open_dataset("digits", "train", canvas=4, limit=5)[0]
    # In evaluation a larger image is left out, counted and named.
    val = open_dataset("digits", "val", canvas=4, limit=5)
    with pytest.raises(ImageError, match="more than the canvas=4"):
        val[0]
    assert val.unreadable.count == 1
