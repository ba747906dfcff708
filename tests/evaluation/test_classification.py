import json

import numpy as np
import pytest
import torch
from torch import nn

from mambar.data import Batch
from mambar.errors import DataError
from mambar.evaluation import evaluate

CLASSES = ("cat", "dog", "hen", "pig", "owl", "yak")


class Reader(nn.Module):
    """Its logits are the image's own pixels."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.9)

    def forward(self, images):
        return self.drop(images.flatten(1))


def batches(logits, labels, size=4):
    for number, start in enumerate(range(0, len(labels), size)):
        part = slice(start, start + size)
        yield Batch(
            {
                "images": logits[part].reshape(-1, 1, 1, logits.shape[1]),
                "labels": labels[part],
                "indices": torch.arange(len(labels))[part],
            },
            number,
            0,
        )


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(23, 6, generator=generator), torch.randint(6, (23,), generator=generator)


def test_counts_are_those_of_the_whole_set(data):
    logits, labels = data
    model = Reader().train()
    result = evaluate(model, batches(logits, labels), classes=CLASSES)
    assert model.training, "the mode is put back"
    assert result.count == 23
    assert result.top1 == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    top5 = (logits.topk(5, 1).indices == labels[:, None]).any(1).float().mean()
    assert result.top5 == pytest.approx(float(top5))
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-6)
    assert np.trace(result.confusion) / 23 == pytest.approx(result.top1)
    wrong = (logits.argmax(1) != labels).nonzero().flatten().tolist()
    assert result.misclassified == tuple(wrong[:16])


def test_parts_on_several_processes_add_up_to_the_whole(data):
    logits, labels = data
    whole = evaluate(Reader(), batches(logits, labels), classes=CLASSES)
    assert len(whole.misclassified) == 16, "as many as are kept; there are more"
    collected, misclassified = [], []
    for rank in (0, 1):
        evaluate(
            Reader(),
            list(batches(logits, labels))[rank::2],
            classes=CLASSES,
            all_reduce=lambda counts: collected.append(counts.clone()) or counts,
            gather_objects=lambda found: misclassified.append(found) or [found],
        )
    result = evaluate(
        Reader(),
        batches(logits[:0], labels[:0]),
        classes=CLASSES,
        all_reduce=lambda counts: collected[0] + collected[1],
        gather_objects=lambda found: [*misclassified, found],
    )
    assert (result.top1, result.top5, result.loss) == (whole.top1, whole.top5, whole.loss)
    assert (result.confusion == whole.confusion).all() and result.misclassified == whole.misclassified


def test_an_evaluation_without_any_image_is_one_line():
    with pytest.raises(DataError, match="nothing to measure"):
        evaluate(Reader(), [], classes=CLASSES)


def test_a_class_without_images_has_no_share(data):
    logits, labels = data
    kept = labels != 2
    result = evaluate(Reader(), batches(logits[kept], labels[kept]), classes=CLASSES)
    assert result.per_class["hen"] is None
    shares = {name: share for name, share in result.per_class.items() if name != "hen"}
    assert all(0 <= share <= 1 for share in shares.values())
    assert json.loads(json.dumps(result.to_dict()))["per_class"]["hen"] is None


def test_another_number_of_classes_is_one_line(data):
    logits, labels = data
    with pytest.raises(DataError, match=r"the model has 6 classes, the data 3 \(cat, dog, hen"):
        evaluate(Reader(), batches(logits, labels), classes=CLASSES[:3])


def test_no_image_is_nothing_to_measure():
    with pytest.raises(DataError, match="there is nothing to measure: none of the images to evaluate could be read"):
        evaluate(Reader(), [], classes=CLASSES)
