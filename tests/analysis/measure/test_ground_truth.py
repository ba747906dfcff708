import json
import math
from dataclasses import asdict

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from mambar.analysis.measure.ground_truth import (
    background_share,
    best_iou,
    ground_truth_statistics,
    iou,
    local_entropy,
    map_ground_truth,
    otsu_threshold,
    roc_auc,
    spearman,
)
from mambar.analysis.measure.outliers import FixedThreshold
from mambar.errors import InputError
from op_inputs import without_shape_hook


def test_background_share_by_hand():
    masks = torch.tensor([[[0, 0, 1, 2], [0, 1, 1, 1]]], dtype=torch.uint8)
    assert background_share(masks, 2).tolist() == [[[0.75, 0.0]]]
    ignored = background_share(masks, 2, ignore=1)
    assert ignored[0, 0].tolist() == [1.0, 0.0]
    assert math.isnan(float(background_share(torch.full((1, 2, 2), 255), 2, ignore=255)))


def test_entropy_by_hand():
    plain = torch.full((1, 3, 2, 2), 7, dtype=torch.uint8)
    two = torch.tensor([[[[0, 0], [255, 255]]]], dtype=torch.uint8)
    four = torch.tensor([[[[0, 64], [128, 255]]]], dtype=torch.uint8)
    assert [float(local_entropy(images, 2)) for images in (plain, two, four)] == [0.0, 1.0, 2.0]


def test_auc_by_hand_and_equal_to_scikit_learn():
    scores = torch.tensor([3.0, 1.0, 2.0, 2.0])
    # Positives 3 and 2 against negatives 1 and 2: three pairs won, one tied.
    assert roc_auc(scores, torch.tensor([True, False, True, False])) == 3.5 / 4
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 20, (300,), generator=generator).double()
    positive = torch.rand(300, generator=generator) < 0.3
    assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive.numpy(), scores.numpy()))
    assert math.isnan(roc_auc(scores, torch.ones(300, dtype=torch.bool)))


def test_spearman_by_hand():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(values, values.exp()) == pytest.approx(1.0)
    assert spearman(values, -values) == pytest.approx(-1.0)
    assert spearman(values, torch.tensor([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert math.isnan(spearman(values, torch.ones(4)))
    ties = torch.tensor([5.0, 1.0, 5.0, 9.0])
    assert spearman(values, ties) == pytest.approx(spearmanr(values.numpy(), ties.numpy()).statistic)


def test_iou_by_hand():
    found, wanted = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    assert iou(found, wanted) == pytest.approx(1 / 3)
    assert math.isnan(iou(torch.zeros(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)))
    scores = torch.tensor([[9.0, 8.0, 1.0, 0.0]])
    # From the top: 9 (right), 8 (wrong), 1 (right): IoU 1/2, 1/3, 2/3, 2/4.
    assert best_iou(scores, torch.tensor([[True, False, True, False]])) == pytest.approx(2 / 3)
    # Equal scores cannot be parted: all four or none.
    assert best_iou(torch.ones(1, 4), torch.tensor([[True, False, True, False]])) == 0.5


def test_otsu_splits_two_groups():
    assert otsu_threshold(torch.tensor([1.0, 1.2, 0.8, 9.0, 9.5])) == pytest.approx((1.2 + 9.0) / 2)
    assert otsu_threshold(torch.tensor([3.0])) == 3.0


def scene():
    """Two images of 2 × 2 patches, the left column background; the token of highest norm is top left."""
    background = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).expand(2, 2, 2).double()
    norms = torch.tensor([[9.0, 1.0], [2.0, 3.0]]).expand(1, 2, 2, 2)
    return norms, background


def test_statistics_by_hand():
    norms, background = scene()
    entropy = -norms[0].double()
    (layer,) = ground_truth_statistics(
        norms, background=background, entropy=entropy, rule=FixedThreshold(value=5.0), layers=[4]
    ).layers
    assert (layer.layer, layer.outliers, layer.background, layer.outlier_background, layer.lift) == (
        4,
        2,
        0.5,
        1.0,
        2.0,
    )
    # Background 9 and 2 against objects 1 and 3: three of four pairs; the same in both images.
    assert (layer.auc, layer.auc_low, layer.auc_high) == (0.75, 0.75, 0.75)
    assert layer.entropy_correlation == pytest.approx(-1.0)


def test_unknown_patches_are_left_out():
    norms, background = scene()
    background = background.clone()
    background[:, 0, 0] = math.nan
    found = ground_truth_statistics(norms, background=background, rule=FixedThreshold(value=5.0))
    assert math.isnan(found.layers[0].outlier_background) and found.layers[0].auc == 0.5
    json.dumps(asdict(found))


@without_shape_hook
def test_masks_of_another_size_are_refused():
    norms, background = scene()
    with pytest.raises(InputError, match="patch size"):
        ground_truth_statistics(norms, background=background[:, :1])


def test_map_ground_truth_by_hand():
    background = torch.tensor([[1.0, 0.0, 0.0, 1.0]]).expand(3, 1, 4).double().clone()
    background[2] = 1.0  # an image without an object is not counted
    scores = torch.tensor([[0.0, 5.0, 6.0, 1.0]]).expand(3, 1, 4)
    found = map_ground_truth("m", scores, background)
    assert (found.otsu_iou, found.best_iou, found.everything_iou, found.num_images) == (1.0, 1.0, 0.5, 2)


def test_interval_of_the_outliers_share_is_that_of_a_bootstrap_over_images():
    generator = torch.Generator().manual_seed(0)
    background = (torch.rand(200, 4, 4, generator=generator) > 0.4).double()
    # Outliers, mostly in the background, in a number that differs between images.
    rate = torch.rand(200, 1, 1, generator=generator) * (0.2 + 0.6 * background)
    norms = 1 + 9 * (torch.rand(200, 4, 4, generator=generator) < rate).double()
    layer = ground_truth_statistics(norms[None], background=background, rule=FixedThreshold(value=5.0)).layers[0]
    hits = norms > 5
    parts, totals = (hits * background).sum((1, 2)), hits.sum((1, 2)).double()
    assert layer.outlier_background == pytest.approx(float(parts.sum() / totals.sum()))
    drawn = torch.randint(200, (4000, 200), generator=generator)
    ends = (parts[drawn].sum(1) / totals[drawn].sum(1)).quantile(torch.tensor([0.025, 0.975]).double())
    assert [layer.outlier_background_low, layer.outlier_background_high] == pytest.approx(ends.tolist(), abs=0.01)
    alone = ground_truth_statistics(norms[None, :1], background=background[:1], rule=FixedThreshold(value=5.0)).layers[
        0
    ]
    assert math.isnan(alone.outlier_background_low)
