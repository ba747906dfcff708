import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambar.data.dataset import ImageDataset
from mambar.data.synthetic.scenes import BACKGROUNDS
from mambar.data.synthetic.shapes import Shapes
from mambar.errors import DataError


def test_a_scene_has_pixels_a_label_and_a_mask():
    shapes = Shapes()
    sample = shapes[3]
    assert isinstance(shapes, ImageDataset) and len(shapes) == 10_000 and len(shapes.classes) == 10
    assert sample.image.shape == (3, 64, 64) and sample.image.dtype == torch.uint8
    assert sample.mask is not None and sample.mask.shape == (64, 64) and sample.mask.dtype == torch.uint8
    assert sample.mask.max() <= 10 and (sample.mask == 0).any()


def test_a_scene_is_its_number():
    first, again = Shapes()[17], Shapes()[17]
    assert torch.equal(first.image, again.image)
    others = [Shapes()[27], Shapes(split="val")[17], Shapes(seed=1)[17]]
    assert not any(torch.equal(first.image, other.image) for other in others)
    with pytest.raises(IndexError):
        Shapes(num_images=5)[5]


def test_labels_are_balanced():
    labels = [Shapes(img_size=8, num_classes=4)[index].label for index in range(40)]
    assert np.bincount(labels).tolist() == [10] * 4


def test_the_label_is_the_largest_thing_of_the_mask():
    shapes = Shapes(img_size=64, objects=(1, 2), clutter=1.0)
    for index in range(150):
        sample = shapes[index]
        counts = torch.bincount(sample.mask.flatten().long(), minlength=11)[1:]
        assert int(counts.argmax()) == sample.label


def test_the_largest_thing_has_the_wanted_share_and_is_whole():
    shapes = Shapes(img_size=96, objects=(1, 1), area=(0.1, 0.1))
    shares = []
    for index in range(60):
        mask = shapes[index].mask == shapes[index].label + 1
        edge = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert not edge.any()
        shares.append(float(mask.float().mean()))
    assert np.abs(np.array(shares) - 0.1).max() < 0.01


def test_a_scene_is_the_same_at_every_size():
    small, large = Shapes(img_size=48), Shapes(img_size=144)
    overlaps = []
    for index in range(30):
        lesser, greater = small[index].mask, large[index].mask[1::3, 1::3]
        overlaps.append(float((lesser == greater).float().mean()))
    assert min(overlaps) > 0.95 and np.mean(overlaps) > 0.98


def test_edges_are_smooth():
    shapes = Shapes(img_size=64, objects=(1, 1), clutter=0.0, background="plain")
    between = 0
    for index in range(20):
        image, mask = shapes[index].image.float(), shapes[index].mask
        edge = (mask[1:] != mask[:-1]).nonzero()
        for row, col in edge[:: max(len(edge) // 10, 1)].tolist():
            steps = (image[:, row + 1, col] - image[:, row, col]).abs().sum()
            whole = (image[:, min(row + 3, 63), col] - image[:, max(row - 2, 0), col]).abs().sum()
            between += bool(0 < steps < 0.9 * whole)
    assert between > 60


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    objects=st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda pair: tuple(sorted(pair))),
    area=st.tuples(st.floats(0.001, 0.25), st.floats(0.001, 0.25)).map(lambda pair: tuple(sorted(pair))),
    kind=st.sampled_from(BACKGROUNDS),
    clutter=st.floats(0, 1),
    index=st.integers(0, 9999),
)
def test_every_setting_draws(size, objects, area, kind, clutter, index):
    shapes = Shapes(img_size=size, objects=objects, area=area, background=kind, clutter=clutter)
    sample = shapes[index]
    assert sample.image.shape == (3, *size)
    assert sample.mask is not None and sample.mask.shape == size


def test_the_fingerprint_tells_settings_apart():
    prints = {
        shapes.fingerprint()
        for shapes in (Shapes(), Shapes(split="val"), Shapes(seed=1), Shapes(img_size=32), Shapes(clutter=0.3))
    }
    assert len(prints) == 5
    assert Shapes().fingerprint() == Shapes(num_images=10_000).fingerprint()


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "test"},
        {"img_size": 4},
        {"img_size": (64, 100_000)},
        {"num_images": 0},
        {"num_classes": 0},
        {"num_classes": 11},
        {"objects": (0, 3)},
        {"objects": (3, 1)},
        {"area": (0.0, 0.1)},
        {"area": (0.1, 0.6)},
        {"background": "noise"},
        {"clutter": 2.0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(DataError, match=next(iter(wrong))):
        Shapes(**wrong)
