"""Protocols on frozen features, against plain loops and scikit-learn."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mambar.errors import InputError
from mambar.evaluation.frozen_features import (
    FEATURES,
    FeatureSet,
    evaluate_features,
    knn_votes,
    linear_logits,
    logistic_logits,
    own_logits,
    pooled_rows,
    read_features,
    write_rows,
)
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.models.timm_vit import create_timm_vit
from mambar.nn import Tokens

CPU = torch.device("cpu")


def clusters(images: int, classes: int = 4, dim: int = 6, spread: float = 1.0, seed: int = 0):
    """Features around one random center per class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99)) * 2
    labels = torch.randint(classes, (images,), generator=generator)
    return centers[labels] + spread * torch.randn(images, dim, generator=generator), labels


def test_votes_of_neighbors_equal_a_plain_loop(monkeypatch):
    monkeypatch.setattr("mambar.evaluation.frozen_features._BLOCK", 17)
    monkeypatch.setattr("mambar.evaluation.frozen_features._QUERIES", 5)
    train, labels = clusters(60)
    queries, _ = clusters(13, seed=1)
    found = knn_votes(train, labels, queries, 4, CPU, neighbors=(1, 7, 60, 61))
    assert list(found) == [1, 7, 60]
    for k, votes in found.items():
        for query, row in zip(queries.double().tolist(), votes.tolist(), strict=True):
            cosines = []
            for image, label in zip(train.double().tolist(), labels.tolist(), strict=True):
                product = sum(a * b for a, b in zip(query, image, strict=True))
                cosines.append((product / math.hypot(*query) / math.hypot(*image), label))
            expected = [0.0] * 4
            for cosine, label in sorted(cosines, reverse=True)[:k]:
                expected[label] += math.exp(cosine / 0.07)
            assert row == pytest.approx(expected, rel=1e-4)


def test_too_few_images_for_neighbors_and_for_a_held_out_part():
    train, labels = clusters(9)
    with pytest.raises(InputError, match="9 training images are fewer than k=10"):
        knn_votes(train, labels, train, 4, CPU)
    for fit in (logistic_logits, linear_logits):
        with pytest.raises(InputError, match="No class has five training images"):
            fit(train[:4], torch.arange(4), train, 4, CPU)


def test_logistic_regression_equals_scikit_learns():
    train, labels = clusters(300, spread=2.0)
    queries, _ = clusters(80, seed=1, spread=2.0)
    ((strength, logits),) = logistic_logits(train, labels, queries, 4, CPU).items()
    mean, scale = train.double().mean(0), train.double().std(0, correction=0)
    model = LogisticRegression(C=1 / (strength * len(train)), tol=1e-8, max_iter=5000)
    model.fit(((train - mean) / scale).numpy(), labels.numpy())
    expected = model.predict_proba(((queries - mean) / scale).numpy())
    assert np.abs(torch.softmax(logits, 1).numpy() - expected).max() < 5e-3


@pytest.mark.parametrize("fit", [logistic_logits, linear_logits])
def test_separable_classes_are_separated_and_the_result_repeats(fit):
    train, labels = clusters(100, spread=0.1)
    train[:, 2] = 3.5  # a constant feature
    queries, target = clusters(50, seed=1, spread=0.1)
    queries[:, 2] = 3.6
    (logits,) = fit(train, labels, queries, 4, CPU).values()
    assert (logits.argmax(1) == target).all()
    (again,) = fit(train, labels, queries, 4, CPU).values()
    assert torch.equal(logits, again)


class Drawn:
    """Tokens that are a function of the image's first pixel."""

    def tokens(self, images, layers, *, tensor):
        assert layers == [-1] and tensor == "normed"
        first = images[:, 0, 0, 0]
        patches = first[:, None, None] + torch.arange(6.0).reshape(1, 2, 3)
        registers = first[:, None, None] * torch.arange(9.0).reshape(1, 3, 3)
        return [Tokens(patches=patches, registers=registers, grid=(1, 2))]


def batch(indices):
    from mambar.data.loading.loaders import Batch

    images = torch.tensor(indices, dtype=torch.float32).reshape(-1, 1, 1, 1)
    return Batch({"images": images, "labels": torch.tensor(indices) % 3, "indices": torch.tensor(indices)})


def test_processes_write_their_rows_and_unreadable_images_are_left_out(tmp_path):
    names = list(FEATURES)
    for indices in ([[0, 1], [4, 5]], [[2], [7, 6]]):  # 3 and 8 could not be read
        rows = partial(pooled_rows, names=names)
        write_rows(Drawn(), map(batch, indices), tmp_path, num_images=9, rows=rows)
    found = read_features(tmp_path, names, num_images=9)
    kept = [0, 1, 2, 4, 5, 6, 7]
    assert found.labels.tolist() == [index % 3 for index in kept]
    first = np.array(kept, dtype=np.float32)[:, None]
    assert np.array_equal(found.features["registers"], first * np.arange(9.0))
    assert np.array_equal(found.features["token"], first * np.arange(3.0))
    assert np.array_equal(found.features["register_mean"], first * np.arange(3.0, 6))
    assert np.array_equal(found.features["avg"], first + np.array([1.5, 2.5, 3.5]))
    joined = np.concatenate([first * np.arange(3.0, 6), first + np.array([1.5, 2.5, 3.5])], 1)
    assert np.array_equal(found.features["register_mean_avg"], joined)


@pytest.mark.parametrize("head", ["registers", "register_mean", "token", "avg", "avg_all", "timm", "timm_avg"])
def test_the_classifier_reads_the_tokens_of_the_same_pass(head):
    torch.manual_seed(0)
    if head.startswith("timm"):
        name, pool = "vit_tiny_patch16_224", "avg" if head == "timm_avg" else "token"
        model = create_timm_vit(name, img_size=32, num_classes=5, depth=2, global_pool=pool)
        torch.nn.init.normal_(model.get_classifier().weight)
    else:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_registers": 3, "num_classes": 5}
        model = VisionMamba(VisionMambaConfig(head=head, **sizes))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        (tokens,) = model.eval().tokens(images, [-1], tensor="normed")
        torch.testing.assert_close(own_logits(model, tokens, images), model(images))


def test_scores_name_feature_protocol_and_setting():
    train, labels = clusters(60, spread=0.1)
    test, target = clusters(20, spread=0.1, seed=1)
    sets = [FeatureSet(features={"avg": x.numpy()}, labels=y.numpy()) for x, y in ((train, labels), (test, target))]
    scores = evaluate_features(*sets, num_classes=4, protocols=("knn", "logistic"))
    assert [(each.features, each.protocol) for each in scores] == [("avg", "knn")] * 2 + [("avg", "logistic")]
    assert [each.setting for each in scores[:2]] == [10, 20]
    assert all(each.top1 == 1 and each.count == 20 for each in scores)
