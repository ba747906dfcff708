"""Cases counted by hand, and the rules that hold for all."""

import json

import numpy as np
import pytest
import torch

from mambar.data.segmentation.masks import IGNORE
from mambar.errors import DataError, InputError
from mambar.evaluation.segmentation import SegmentationCounts, compute_metrics, count_pixels, image_iou

# Two images of 2×3 pixels, three classes, two ignored pixels.
TRUTH = torch.tensor([[[0, 0, 1], [1, 1, IGNORE]], [[0, 0, 0], [0, 1, IGNORE]]])
GUESS = torch.tensor([[[0, 1, 1], [1, 0, 2]], [[0, 0, 0], [2, 1, 1]]])
NAMES = ("a", "b", "c")


def result(guess, truth, tolerance=0):
    return compute_metrics(count_pixels(guess, truth, 3, tolerance=tolerance), NAMES)


def test_counted_by_hand():
    found = result(GUESS, TRUTH)
    # a: 4 right, 1 taken for b, 1 for c. b: 3 right, 1 taken for a. c occurs in predictions only.
    assert found.confusion.tolist() == [[4, 1, 1], [1, 3, 0], [0, 0, 0]]
    assert found.per_class == pytest.approx({"a": 4 / 7, "b": 3 / 5, "c": 0.0}, abs=1e-12)
    assert found.miou == pytest.approx((4 / 7 + 3 / 5 + 0) / 3, abs=1e-12)
    assert found.per_class_accuracy == {"a": pytest.approx(4 / 6), "b": pytest.approx(3 / 4), "c": None}
    assert found.mean_accuracy == pytest.approx((4 / 6 + 3 / 4) / 2, abs=1e-12)
    assert found.pixel_accuracy == pytest.approx(7 / 10, abs=1e-12)
    assert found.pixels == 10


def test_per_image_by_hand():
    # The second image: a 3 of 4, b 1 of 1, c predicted only.
    assert image_iou(GUESS[1], TRUTH[1], 3) == pytest.approx((3 / 4 + 1 + 0) / 3, abs=1e-12)


def test_class_that_occurs_nowhere_does_not_count():
    found = compute_metrics(count_pixels(GUESS, TRUTH, 5, tolerance=0), ("a", "b", "c", "d", "e"))
    assert found.per_class["d"] is None and found.miou == pytest.approx(result(GUESS, TRUTH).miou)


def test_borders_by_hand():
    """A bar of 2 columns, guessed one column too far right: true borders 1|2, guessed 2|3 of six columns."""
    truth, guess = torch.zeros(4, 6, dtype=torch.int64), torch.zeros(4, 6, dtype=torch.int64)
    truth[:, :2], guess[:, :3] = 1, 1
    exact = compute_metrics(count_pixels(guess, truth, 2, tolerance=0), ("rest", "bar"))
    assert exact.per_class_boundary == {"rest": 0.0, "bar": 0.0} and exact.boundary_f == 0.0
    near = compute_metrics(count_pixels(guess, truth, 2, tolerance=1), ("rest", "bar"))
    assert near.per_class_boundary == {"rest": 1.0, "bar": 1.0}


def test_boundary_f_is_the_harmonic_mean():
    truth, guess = torch.zeros(5, 9, dtype=torch.int64), torch.zeros(5, 9, dtype=torch.int64)
    # One true dot; two guessed dots, one of them far away: precision 1/2, recall 1.
    truth[2, 1], guess[2, 1], guess[2, 7] = 1, 1, 1
    found = compute_metrics(count_pixels(guess, truth, 2, tolerance=0), ("rest", "dot"))
    assert found.per_class_boundary["dot"] == pytest.approx(2 * 0.5 * 1 / 1.5, abs=1e-12)


@pytest.mark.parametrize(("tolerance", "reached"), [(2, False), (3, True)])
def test_distance_is_euclidean(tolerance, reached):
    """Dots 2 down and 2 right of each other are 2.83 pixels apart, in any corner of the image."""
    truth, guess = torch.zeros(7, 7, dtype=torch.int64), torch.zeros(7, 7, dtype=torch.int64)
    truth[0, 0], guess[2, 2] = 1, 1
    counts = count_pixels(guess, truth, 2, tolerance=tolerance)
    assert counts.borders[1].tolist() == [1, int(reached), 1, int(reached)]


def test_ignored_pixels_make_no_border():
    truth, guess = torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)
    truth[:, 2:], guess[:, 2:] = IGNORE, 1
    counts = count_pixels(guess, truth, 2, tolerance=0)
    assert counts.borders.sum() == 0 and counts.confusion.tolist() == [[6, 0], [0, 0]]


def test_perfect_and_empty():
    perfect = result(TRUTH.clamp(max=2), TRUTH)
    assert (perfect.miou, perfect.pixel_accuracy, perfect.boundary_f) == (1.0, 1.0, 1.0)
    nothing = compute_metrics(SegmentationCounts.zeros(3), NAMES)
    assert nothing.miou == 0.0 and nothing.pixels == 0 and nothing.per_class["a"] is None
    ignored = result(GUESS, torch.full_like(TRUTH, IGNORE))
    assert ignored.pixels == 0


def test_parts_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (5, 20, 30), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.1] = IGNORE
    guess = torch.randint(0, 4, truth.shape, generator=generator)
    whole = count_pixels(guess, truth, 4)
    parts = SegmentationCounts.zeros(4)
    for index in (3, 0, 4, 1, 2):
        parts = parts + SegmentationCounts.unflatten(count_pixels(guess[index], truth[index], 4).flatten(), 4)
    assert torch.equal(parts.flatten(), whole.flatten())


def test_result_is_json():
    again = json.loads(json.dumps(result(GUESS, TRUTH).to_dict()))
    assert again["format_version"] == 1 and again["per_class_iou"]["c"] == 0.0


@pytest.mark.parametrize(
    ("guess", "truth", "message"),
    [(GUESS, TRUTH.clamp(max=7), "a mask holds 7"), (GUESS + 1, TRUTH, "the prediction holds 3")],
)
def test_unknown_values_are_refused(guess, truth, message):
    with pytest.raises(DataError, match=message):
        result(guess, truth)


def test_shapes_must_agree():
    with pytest.raises(InputError, match="differ in shape"):
        result(GUESS[:, :, :2], TRUTH)


def test_equals_scikit_learn():
    """The confusion matrix and per-class Jaccard index of another implementation."""
    from sklearn.metrics import confusion_matrix, jaccard_score

    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 6, (2, 3, 40, 50))
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    found = compute_metrics(count_pixels(torch.from_numpy(guess), torch.from_numpy(truth), 6), tuple("abcdef"))
    valid = truth != IGNORE
    assert np.array_equal(found.confusion, confusion_matrix(truth[valid], guess[valid]))
    expected = jaccard_score(truth[valid], guess[valid], average=None)
    assert np.allclose(list(found.per_class.values()), expected, rtol=0, atol=1e-12)
    assert found.miou == pytest.approx(expected.mean(), abs=1e-12)
