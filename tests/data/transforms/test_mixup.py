import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambar.data.keys import numpy_generator
from mambar.data.transforms.mixup import Mixup, soft_targets
from mambar.errors import RecipeError


def batch(size=6, side=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, side, side, generator=generator), torch.arange(size) % 5


def drawn(mix, wanted, keys=range(200)):
    return next(k for k in keys if wanted(mix.draw(16, 16, k)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("cut", [False, True])
def test_pixels_and_targets_are_timms(cut, smoothing, monkeypatch):
    import timm.data.mixup as timm_mixup

    ours = Mixup(num_classes=5, label_smoothing=smoothing)
    k = drawn(ours, lambda draw: (draw.box is not None) == cut and 0.2 < draw.lam < 0.8)
    draw = ours.draw(16, 16, k)
    theirs = timm_mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=smoothing, num_classes=5)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (draw.lam, cut))
    if draw.box is not None:
        top, bottom, left, right = draw.box
        monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", lambda *a, **k: ((top, bottom, left, right), draw.lam))
    images, labels = batch()
    expected_images, expected_targets = theirs(images.clone(), labels)
    before = images.clone()
    mixed, targets = ours(images, labels, k)
    assert torch.equal(images, before)
    assert torch.equal(mixed, expected_images)
    torch.testing.assert_close(targets, expected_targets)


def test_the_box_is_timms(monkeypatch):
    import timm.data.mixup as timm_mixup

    mix = Mixup(num_classes=2, mixup_alpha=0.0)
    for k in range(200):
        generator = numpy_generator(k)
        generator.random(2)
        share = float(generator.beta(1.0, 1.0))
        centers = iter([int(generator.integers(20)), int(generator.integers(30))])
        monkeypatch.setattr(timm_mixup.np.random, "randint", lambda *a, centers=centers, **kw: next(centers))
        (top, bottom, left, right), kept = timm_mixup.cutmix_bbox_and_lam((3, 20, 30), share)
        draw = mix.draw(20, 30, k)
        if draw.lam == 1.0:
            continue
        assert draw.box == (top, bottom, left, right)
        assert draw.lam == pytest.approx(kept)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_draws_are_distributed_as_timms(mixup, cutmix):
    import timm.data.mixup as timm_mixup

    np.random.seed(0)  # noqa: NPY002
    theirs = timm_mixup.Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, prob=0.9, num_classes=2)
    expected = []
    for _ in range(3000):
        lam, cut = theirs._params_per_batch()
        if cut:
            _, lam = timm_mixup.cutmix_bbox_and_lam((3, 32, 32), lam)
        expected.append(lam)
    ours = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, prob=0.9, num_classes=2)
    kept = [ours.draw(32, 32, k).lam for k in range(3000)]
    grid = np.linspace(0.05, 0.95, 19)
    assert np.abs(np.quantile(kept, grid) - np.quantile(expected, grid)).max() < 0.06


@given(st.integers(0, 2**62), st.integers(1, 7), st.floats(0, 0.5))
def test_targets_are_distributions(k, size, smoothing):
    mix = Mixup(num_classes=5, label_smoothing=smoothing)
    images, labels = batch(size)
    mixed, targets = mix(images, labels, k)
    assert mixed.shape == images.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    assert (targets >= 0).all()
    again, targets_again = mix(images, labels, k)
    assert torch.equal(mixed, again) and torch.equal(targets, targets_again)


def test_the_share_of_pixels_is_the_share_of_targets():
    mix = Mixup(num_classes=2, mixup_alpha=0.0)
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    for k in range(50):
        mixed, targets = mix(images, torch.tensor([0, 1]), k)
        assert float(mixed[0].mean()) == pytest.approx(float(targets[0, 1]), abs=1e-6)


@pytest.mark.parametrize("off", [{"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, {"prob": 0.0}])
def test_nothing_is_mixed_when_switched_off(off):
    mix = Mixup(num_classes=5, label_smoothing=0.1, **off)
    images, labels = batch()
    for k in range(20):
        mixed, targets = mix(images, labels, k)
        assert mixed is images
        assert torch.equal(targets, soft_targets(labels, 5, smoothing=0.1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mixup_alpha": -1.0},
        {"cutmix_alpha": math.inf},
        {"mixup_alpha": math.nan},
        {"prob": 1.1},
        {"switch_prob": -0.1},
        {"label_smoothing": 2.0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Mixup(num_classes=5, **wrong)
    with pytest.raises(RecipeError, match="num_classes"):
        Mixup(num_classes=0)
