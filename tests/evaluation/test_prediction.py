"""The most probable classes, with the model in evaluation mode."""

import pytest
import torch
from torch import nn

from mambar.evaluation.prediction import class_probabilities, top_classes


def test_probabilities_are_those_of_evaluation_mode_and_training_goes_on():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(0.9)).train()
    images = torch.rand(2, 3, 2, 2)
    probabilities = class_probabilities(model, images)
    assert model.training
    assert torch.equal(probabilities, model.eval()(images).softmax(1))


def test_top_classes_are_named_or_numbered_best_first():
    probabilities = torch.tensor([0.1, 0.7, 0.2])
    named = top_classes(probabilities, ["ant", "bee", "cat"], 2)
    assert [(each.name, each.index) for each in named] == [("bee", 1), ("cat", 2)]
    assert [each.name for each in top_classes(probabilities, None, 5)] == ["1", "2", "0"]
    assert named[0].probability == pytest.approx(0.7)
