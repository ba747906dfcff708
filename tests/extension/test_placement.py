"""A placement is added from outside src, in one file."""

import runpy
from pathlib import Path

import pytest
import torch

from mambar.models import VisionMamba
from mambar.nn import PLACEMENTS

EXAMPLE = Path(__file__).parents[2] / "examples" / "extend" / "placement.py"


@pytest.fixture
def example(monkeypatch):
    # The entry "row_centers" is removed again after the test.
    monkeypatch.setitem(PLACEMENTS, "row_centers", None)
    return runpy.run_path(str(EXAMPLE))


def test_the_example_trains_saves_and_loads(example):
    model = example["build"]()
    images = torch.randn(2, 3, 32, 32)
    logits = model(images)
    assert logits.shape == (2, 1000)
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    again = VisionMamba(type(model.config).from_dict(model.config.to_dict())).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(images), model.eval()(images))


def test_the_example_is_short():
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 40


def test_positions_follow_the_grid(example):
    registers = example["build"]().registers
    assert registers.positions(16, (4, 4)) == (2, 7, 12, 17)
    patches = torch.randn(1, 12, 32)
    split = registers.split(registers.insert(patches, (6, 2)), (6, 2))
    assert torch.equal(split.patches, patches)
