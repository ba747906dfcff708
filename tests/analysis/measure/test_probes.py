import json

import pytest
import torch

from mambar.analysis.measure.probes import (
    POOLS,
    PooledFeatures,
    difference,
    fold_numbers,
    norm_pool,
    pool_features,
    probe,
    probe_all,
    wilson_interval,
)
from mambar.errors import InputError
from mambar.nn import Tokens


def separable(count=90, dim=5, classes=3, spread=0.1):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    centers = torch.randn(classes, dim, generator=generator)
    return centers[labels] + spread * torch.randn(count, dim, generator=generator), labels


def test_pools_by_hand():
    patches = torch.arange(10.0).reshape(1, 10, 1)
    norms = torch.tensor([[5.0, 1, 2, 3, 4, 9, 8, 7, 6, 0]])
    tokens = Tokens(patches=patches, registers=torch.tensor([[[1.0], [3.0]]]), grid=(2, 5))
    assert norm_pool(0.2)(tokens, norms).tolist() == [[5.5]]
    assert norm_pool(0.01)(tokens, norms).tolist() == [[5.0]]
    assert norm_pool(0.8, highest=False)(tokens, norms).tolist() == [[(45 - 11) / 8]]
    expected = {"all image tokens": [[4.5]], "registers, mean": [[2.0]], "registers, concatenated": [[1.0, 3.0]]}
    for name, vector in expected.items():
        assert POOLS[name](tokens, norms).tolist() == vector


def test_pooling_ranks_by_the_named_tensor(fake_model):
    images = torch.rand(6, 3, 4, 6)
    found = pool_features(fake_model, [(images[:4], torch.arange(4)), (images[4:], torch.arange(2))])
    tokens = fake_model.tokens(images, [-1], tensor="normed")[0].patches
    norms = fake_model.tokens(images, [-1])[0].patches.norm(dim=-1)
    assert torch.allclose(found.features["highest-norm 5 %"], tokens[torch.arange(6), norms.argmax(1)])
    assert found.labels.tolist() == [0, 1, 2, 3, 0, 1] and set(found.features) == set(POOLS)


def test_one_register_or_none_leaves_pools_out(fake_model):
    batches = [(torch.rand(2, 3, 4, 4), torch.arange(2))]
    fake_model.num_registers = 1
    assert "registers, mean" not in pool_features(fake_model, batches).features
    fake_model.num_registers = 0
    assert "first register" not in pool_features(fake_model, batches).features


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_separable_classes_are_found_and_noise_is_not(method):
    features, labels = separable()
    assert probe("x", features, labels, method=method).accuracy == 1.0
    noise = torch.randn(90, 5, generator=torch.Generator().manual_seed(1))
    found = probe("x", noise, labels, method=method)
    assert found.low < 1 / 3 < found.high + 0.1 and found.accuracy < 0.6


def test_a_leak_of_the_label_into_one_image_is_not_used():
    # Features that tell nothing but the number of the image: a probe that saw held-out images would be right.
    labels = torch.arange(40) % 2
    assert probe("x", torch.eye(40), labels).accuracy <= 0.6


def test_result_counts_each_image_once():
    features, labels = separable(spread=2.0)
    found = probe("name", features, labels, folds=4)
    assert found.accuracy == pytest.approx(float(found.correct.double().mean()))
    assert len(found.folds) == 4 and found.low < found.accuracy < found.high
    assert probe("name", features, labels, folds=4).to_dict() == found.to_dict()
    json.dumps(found.to_dict())


def test_folds_hold_every_class_evenly():
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 3)
    numbers = fold_numbers(labels, 5, seed=0)
    assert torch.bincount(numbers[labels == 0]).tolist() == [4] * 5
    assert torch.bincount(numbers[labels == 1]).tolist() == [2] * 5
    assert torch.bincount(numbers).max() - torch.bincount(numbers).min() <= 1
    assert not torch.equal(numbers, fold_numbers(labels, 5, seed=1))


def test_wilson_by_hand():
    assert wilson_interval(8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert (
        wilson_interval(0, 10)[0] == 0.0
        and wilson_interval(10, 10)[1] == pytest.approx(1.0)
        and wilson_interval(0, 0) == (0.0, 1.0)
    )


def test_difference_is_paired():
    features, labels = separable(spread=2.0)
    pooled = PooledFeatures(features={"a": features, "b": features[:, :1]}, labels=labels)
    a, b = probe_all(pooled)
    value, low, high = difference(a, b)
    assert value == pytest.approx(a.accuracy - b.accuracy) and low < value < high
    assert difference(a, a) == (0.0, 0.0, 0.0)


def test_what_cannot_be_probed_is_refused():
    features, labels = separable()
    with pytest.raises(InputError, match="NaN"):
        probe("x", features / 0, labels)
    with pytest.raises(InputError, match="method='svm'"):
        probe("x", features, labels, method="svm")
    with pytest.raises(InputError, match="folds=1"):
        probe("x", features, labels, folds=1)
