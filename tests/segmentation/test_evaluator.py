"""Evaluating a segmenter: every labeled pixel once, the ignored ones never, the mode put back."""

import math

import pytest
import torch

from mambar.data.loading.loaders import Batch
from mambar.data.segmentation.masks import IGNORE
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import DataError
from mambar.segmentation import Inference, Segmenter
from mambar.segmentation.evaluator import evaluate

SETTINGS = {"preprocessing": Preprocessing(img_size=16), "classes": ("a", "b", "c")}


@pytest.fixture
def model(backbone):
    return Segmenter(backbone, num_classes=3, channels=8)


def batch(labels):
    pixels = torch.randint(0, 256, (len(labels), 3, 16, 16), generator=torch.Generator().manual_seed(1))
    images = torch.cat([pixels.to(torch.uint8), labels[:, None].to(torch.uint8)], dim=1)
    numbers = torch.arange(len(labels))
    return Batch({"images": images, "labels": torch.zeros_like(numbers), "indices": numbers}, 0, 0)


def test_a_model_that_always_says_one_class(model):
    with torch.no_grad():
        model.decoder.classifier.weight.zero_()
        model.decoder.classifier.bias.copy_(torch.tensor([0.0, 2.0, 0.0]))
    labels = torch.ones(2, 16, 16)
    labels[0, :4] = 0
    labels[1, :8] = IGNORE
    model.train()
    result = evaluate(model, [batch(labels)], inference=Inference(crop=None), **SETTINGS)
    assert model.training
    # 64 pixels of a, 192 + 128 of b; all are called b.
    assert result.confusion.tolist() == [[0, 64, 0], [0, 320, 0], [0, 0, 0]]
    assert result.pixels == 384 and result.pixel_accuracy == pytest.approx(320 / 384)
    assert result.per_class == {"a": 0.0, "b": pytest.approx(320 / 384), "c": None}
    right, wrong = math.log(math.exp(2) + 2) - 2, math.log(math.exp(2) + 2)
    assert result.loss == pytest.approx((320 * right + 64 * wrong) / 384, rel=1e-6)


def test_windows_that_hold_the_image_are_the_image(model):
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    whole = evaluate(model, [batch(labels)], inference=Inference(crop=None), **SETTINGS)
    window = evaluate(model, [batch(labels)], inference=Inference(crop=16, stride=16), **SETTINGS)
    apart = evaluate(model, [batch(labels[:1])], inference=Inference(crop=16, stride=16), **SETTINGS)
    assert whole.confusion.tolist() == window.confusion.tolist()
    assert apart.pixels * 2 == whole.pixels


def test_counts_of_processes_are_added(model):
    labels = torch.zeros(1, 16, 16)
    twice = evaluate(
        model, [batch(labels)], inference=Inference(crop=None), all_reduce=lambda counts: 2 * counts, **SETTINGS
    )
    once = evaluate(model, [batch(labels)], inference=Inference(crop=None), **SETTINGS)
    assert twice.pixels == 2 * once.pixels and twice.loss == pytest.approx(once.loss)


def test_other_classes_are_refused(model):
    with pytest.raises(DataError, match="the model has 3 classes, the data 2"):
        evaluate(model, [], inference=Inference(), preprocessing=Preprocessing(), classes=("a", "b"))


def test_nothing_labeled_is_nothing_to_measure(model):
    with pytest.raises(DataError, match="there is nothing to measure: no pixel of the evaluated images is labeled"):
        evaluate(model, [batch(torch.full((2, 16, 16), IGNORE))], inference=Inference(crop=None), **SETTINGS)
