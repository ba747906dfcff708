import torch

from mambar.data.loading.loaders import Batch
from mambar.evaluation.valid_labels import evaluate_valid_labels


class Pixels(torch.nn.Module):
    """The pixels are the logits."""

    def forward(self, images):
        return images.flatten(1)


def measure(logits, valid, *, columns=range(4), occurring=(True,) * 4):
    images = torch.tensor(logits)[:, :, None, None]
    batch = Batch({"images": images, "valid_labels": [torch.tensor(labels) for labels in valid]})
    return evaluate_valid_labels(
        Pixels(), [batch], columns=torch.tensor(columns), occurring=torch.tensor(occurring), prepare=lambda each: each
    )


def test_any_of_several_labels_is_correct():
    result = measure([[0.0, 3, 1, 2], [0, 3, 1, 2]], [[1, 3], [0, 2]])
    assert (result.top1, result.top5, result.count, result.left_out) == (0.5, 1.0, 2, 0)


def test_logits_of_classes_that_do_not_occur_are_ignored():
    logits, valid = [[0.0, 3, 1, 2]], [[3]]
    assert measure(logits, valid).top1 == 0.0
    result = measure(logits, valid, occurring=(True, False, True, True))
    assert result.top1 == 1.0 and result.num_classes == 3


def test_classes_are_found_in_the_models_order():
    result = measure([[5.0, 1.0], [1.0, 5.0], [5.0, 1.0]], [[2], [0], [3]], columns=(1, -1, 0, -1))
    assert (result.top1, result.count, result.left_out, result.num_classes) == (1.0, 2, 1, 2)
