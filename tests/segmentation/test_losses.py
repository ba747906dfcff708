"""Losses by hand, against PyTorch's, and cut into parts."""

import math

import pytest
import torch

from mambar.data.segmentation.masks import IGNORE
from mambar.segmentation.losses import dice_loss, pixel_accuracy_sum, pixel_cross_entropy


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 6, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (4, 6, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
    labels[2] = IGNORE
    return logits, labels


def test_cross_entropy_by_hand():
    logits = torch.tensor([0.0, math.log(3.0)])[None, :, None, None].expand(1, 2, 1, 3)
    labels = torch.tensor([[[0, 1, IGNORE]]])
    # Probabilities 1/4 and 3/4; the ignored pixel counts as 0 of three pixels.
    assert pixel_cross_entropy(logits, labels).item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 3)
    weighted = pixel_cross_entropy(logits, labels, weights=torch.tensor([2.0, 0.5]))
    assert weighted.item() == pytest.approx((2 * math.log(4) + 0.5 * math.log(4 / 3)) / 3)


def test_cross_entropy_equals_pytorch(batch):
    logits, labels = batch
    logits.requires_grad_(True)
    weights = torch.rand(5, dtype=torch.float64)
    for given in (None, weights):
        ours = pixel_cross_entropy(logits, labels, weights=given)
        options = {"ignore_index": IGNORE, "reduction": "none", "weight": given}
        theirs = torch.nn.functional.cross_entropy(logits, labels, **options).mean()
        torch.testing.assert_close(ours, theirs)
        (mine,), (other,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("loss", [pixel_cross_entropy, dice_loss])
def test_a_batch_may_be_cut(batch, loss):
    logits, labels = batch
    parts = [loss(logits[start : start + 2], labels[start : start + 2]) for start in (0, 2)]
    torch.testing.assert_close(loss(logits, labels), sum(parts) / 2)


def test_dice_by_hand():
    logits = torch.tensor([0.0, math.log(3.0)])[None, :, None, None].expand(1, 2, 1, 3)
    labels = torch.tensor([[[0, 1, IGNORE]]])
    # Class 0: overlap 1/4 of 1/2 + 1; class 1: 3/4 of 3/2 + 1.
    expected = 1 - (2 * 0.25 / 1.5 + 2 * 0.75 / 2.5) / 2
    assert dice_loss(logits, labels).item() == pytest.approx(expected)
    # A class that the image does not show is no part of it.
    more = torch.cat([logits, torch.full((1, 1, 1, 3), -50.0)], dim=1)
    assert dice_loss(more, labels).item() == pytest.approx(expected)


def test_dice_of_a_perfect_and_of_an_empty_image():
    labels = torch.tensor([[[0, 1], [1, IGNORE]]])
    perfect = 100.0 * torch.nn.functional.one_hot(labels.clamp(max=1), 2).permute(0, 3, 1, 2).float()
    assert dice_loss(perfect, labels).item() == pytest.approx(0.0, abs=1e-6)
    assert dice_loss(perfect, torch.full_like(labels, IGNORE)).item() == 0.0


def test_right_pixels():
    logits = torch.zeros(2, 2, 1, 4)
    logits[:, 1, 0, 2:] = 1.0
    labels = torch.tensor([[[0, 1, 1, IGNORE]], [[IGNORE] * 4]])
    assert pixel_accuracy_sum(logits, labels).item() == pytest.approx(2 / 3)


def test_half_precision_logits_are_taken_up():
    logits = torch.full((1, 2, 1, 1), 3.0, dtype=torch.bfloat16)
    labels = torch.zeros(1, 1, 1, dtype=torch.int64)
    assert pixel_cross_entropy(logits, labels).dtype == torch.float32
    assert pixel_cross_entropy(logits, labels).item() == pytest.approx(math.log(2))
