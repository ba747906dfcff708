import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambar.evaluation.metrics import LossSum, confusion_counts, top_k_correct


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 30))
def test_top_k_is_torchs_where_there_are_no_ties(seed, classes, images):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.stack([torch.randperm(classes, generator=generator).float() for _ in range(images)])
    labels = torch.randint(classes, (images,), generator=generator)
    ks = (1, min(5, classes))
    expected = [int((logits.topk(k, 1).indices == labels[:, None]).any(1).sum()) for k in ks]
    assert top_k_correct(logits, labels, ks).tolist() == expected


def test_ties_go_to_the_lower_index_and_nan_is_a_miss():
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [math.nan, 2.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    assert top_k_correct(logits, labels, (1, 2)).tolist() == [1, 2]


def test_confusion_counts_every_image_in_its_row_and_column():
    predicted, labels = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1])
    assert confusion_counts(predicted, labels, 3).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_the_sum_of_losses_does_not_depend_on_the_order(parts):
    losses = torch.rand(101, generator=torch.Generator().manual_seed(0)).double() * 10
    whole = LossSum()
    whole.add(losses)
    counts = torch.zeros(2, dtype=torch.int64)
    for part in range(parts):
        own = LossSum()
        own.add(losses.flip(0)[part::parts])
        counts += own.counts
    assert torch.equal(counts, whole.counts)
    assert LossSum.mean(counts, 101) == pytest.approx(float(losses.mean()), abs=1e-7)


def test_a_loss_that_is_no_number_makes_the_mean_none():
    losses = LossSum()
    losses.add(torch.tensor([1.0, math.inf]))
    assert math.isnan(LossSum.mean(losses.counts, 2))
