"""Segmentation with frozen patch tokens: known answers on drawn scenes, and plain loops."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mambar.data import open_dataset
from mambar.data.segmentation.masks import IGNORE
from mambar.errors import DataError, InputError
from mambar.evaluation.dense_features import (
    DENSE_PROTOCOLS,
    DenseSet,
    bootstrap_miou,
    dense_rows,
    evaluate_dense_features,
    linear_probe,
    nearest_patches,
)
from mambar.nn import Tokens

CPU = torch.device("cpu")
CLASSES = ("background", "a", "b", "c")


@pytest.fixture(scope="module")
def masks():
    """Masks of drawn scenes, for training and test."""
    options = {"img_size": 16, "num_classes": 3, "num_images": 10}
    splits = (open_dataset("shapes", split, kind="segmentation", **options) for split in ("train", "val"))
    return [torch.stack([dataset[index].mask for index in range(10)]) for dataset in splits]


def scenes(masks, patch_size, features):
    """A set of patches whose tokens are `features(class fractions)`."""
    side = masks.shape[1] // patch_size
    blank = Tokens(
        patches=torch.zeros(len(masks), side**2, 1), registers=torch.zeros(len(masks), 0, 1), grid=(side, side)
    )
    rows = dense_rows(blank, masks, num_classes=4, patch_size=patch_size, keep_masks=True)
    pixels = torch.from_numpy(rows["counts"].astype(np.float32))
    tokens = features(pixels / pixels.sum(2, keepdim=True).clamp(min=1))
    return DenseSet(
        features=tokens.numpy(),
        counts=rows["counts"],
        masks=rows["masks"],
        images=np.arange(len(masks)),
        grid=(side, side),
    )


def test_tokens_that_tell_the_class_segment_without_an_error(masks, monkeypatch):
    monkeypatch.setitem(DENSE_PROTOCOLS, "segmentation_linear", partial(linear_probe, steps=200))
    train, test = (scenes(each, 1, lambda fractions: fractions) for each in masks)
    protocols = ("segmentation_knn", "segmentation_linear")
    for score in evaluate_dense_features(train, test, classes=CLASSES, protocols=protocols):
        assert score.result.miou == score.result.pixel_accuracy == score.low == score.high == 1
        assert score.count == 10 and np.array_equal(score.examples, test.masks[:6])


def test_tokens_without_information_give_the_most_frequent_class(masks):
    train, test = (scenes(each, 4, lambda fractions: torch.ones(*fractions.shape[:2], 3)) for each in masks)
    (score,) = evaluate_dense_features(train, test, classes=CLASSES, protocols=["segmentation_linear"])
    share = float((masks[1] == 0).double().mean())
    assert score.result.pixel_accuracy == pytest.approx(share, rel=1e-12)
    assert score.result.miou == pytest.approx(share / 4, rel=1e-12)
    assert score.low < score.result.miou < score.high


def test_the_nearest_patch_gives_its_class_fractions(masks):
    test = scenes(masks[1], 4, lambda fractions: fractions)
    setting, predict = nearest_patches(test, CPU, neighbors=1)
    found = predict(torch.from_numpy(test.features[:3]))
    assert setting == 1
    torch.testing.assert_close(found, torch.from_numpy(test.features[:3]))
    score = evaluate_dense_features(test, test, classes=CLASSES, protocols=["segmentation_knn"])[0]
    maps = torch.from_numpy(test.features).transpose(1, 2).unflatten(2, (4, 4))
    best = F.interpolate(maps, scale_factor=4, mode="bilinear").argmax(1)
    # Thirty neighbors are other patches too, so the masks are a little worse than those of the patch itself.
    assert 0.8 < score.result.pixel_accuracy <= float((best == masks[1]).double().mean()) + 0.02


def test_retrieval_equals_a_plain_loop_in_blocks_of_any_size(masks, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    train, test = (
        scenes(each, 4, lambda fractions: torch.randn(*fractions.shape[:2], 5, generator=generator)) for each in masks
    )
    monkeypatch.setattr("mambar.evaluation.dense_features._BLOCK", 100)
    _, predict = nearest_patches(train, CPU, neighbors=7)
    found = predict(torch.from_numpy(test.features[:1]))[0]
    bank, pixels = torch.from_numpy(train.features).double().flatten(0, 1), train.counts.reshape(-1, 4)
    for token, fractions in zip(torch.from_numpy(test.features[0]).double(), found, strict=True):
        cosines = (bank @ token) / bank.norm(dim=1) / token.norm()
        near = sorted(range(len(bank)), key=lambda patch: -cosines[patch])[:7]
        weights = np.exp([float(cosines[patch]) / 0.02 for patch in near])
        expected = sum(w * pixels[patch] / pixels[patch].sum() for w, patch in zip(weights, near, strict=True))
        assert fractions.tolist() == pytest.approx((expected / weights.sum()).tolist(), abs=2e-4)


def test_the_linear_probe_is_deterministic_and_splits_do_not_matter(masks):
    train = scenes(masks[0], 4, lambda fractions: fractions)
    rate, predict = linear_probe(train, CPU, steps=50)
    again, other = linear_probe(train, CPU, steps=50)
    features = torch.from_numpy(train.features)
    assert rate == again and torch.equal(predict(features), other(features))
    torch.testing.assert_close(predict(features[:1]), predict(features)[:1])
    few = DenseSet(features=train.features, counts=train.counts, masks=None, images=train.images[:4], grid=train.grid)
    with pytest.raises(InputError, match="4 training images are too few"):
        linear_probe(few, CPU)


def test_counts_and_masks_leave_out_ignored_pixels_and_the_rest_of_a_patch():
    masks = torch.randint(3, (2, 9, 13), dtype=torch.uint8)
    masks[:, :4, :4] = IGNORE
    tokens = Tokens(patches=torch.randn(2, 6, 5), registers=torch.zeros(2, 0, 5), grid=(2, 3))
    rows = dense_rows(tokens, masks, num_classes=3, patch_size=4, keep_masks=True)
    assert np.array_equal(rows["patches"], tokens.patches.numpy()) and np.array_equal(rows["masks"], masks[:, :8, :12])
    for patch in range(6):
        row, col = 4 * (patch // 3), 4 * (patch % 3)
        expected = [int((masks[1, row : row + 4, col : col + 4] == label).sum()) for label in range(3)]
        assert rows["counts"][1, patch].tolist() == expected
    assert not rows["counts"][:, 0].any()
    assert "masks" not in dense_rows(tokens, masks, num_classes=3, patch_size=4, keep_masks=False)
    with pytest.raises(DataError, match="a mask holds 2; 2 classes have labels 0 to 1"):
        dense_rows(tokens, masks, num_classes=2, patch_size=4, keep_masks=False)


def test_unlabeled_patches_and_unreadable_images_are_not_retrieved(masks):
    unlabeled = masks[0].clone()
    unlabeled[:, :8] = IGNORE
    whole = scenes(unlabeled, 4, lambda fractions: fractions + 0.1)
    train = DenseSet(features=whole.features, counts=whole.counts, masks=None, images=whole.images[1:], grid=whole.grid)
    _, predict = nearest_patches(train, CPU)
    assert torch.isfinite(predict(torch.from_numpy(whole.features[:1]))).all()
    empty = DenseSet(
        features=whole.features, counts=np.zeros_like(whole.counts), masks=None, images=whole.images, grid=whole.grid
    )
    with pytest.raises(DataError, match="no pixel of the training images is labeled"):
        evaluate_dense_features(empty, whole, classes=CLASSES, protocols=["segmentation_knn"])


def test_the_interval_is_that_of_images_drawn_again():
    ratios = np.array([[[3, 0, 0], [4, 2, 0]]] * 5)
    assert bootstrap_miou(ratios, seed=0) == (0.375, 0.375)
    ratios = np.array([[[1], [1]], [[0], [1]]] * 50)
    low, high = bootstrap_miou(ratios, seed=0)
    # The binomial interval of 50 hits in 100.
    assert low == pytest.approx(0.40, abs=0.02) and high == pytest.approx(0.60, abs=0.02)
