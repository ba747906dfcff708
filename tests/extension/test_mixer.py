"""A mixer is added from outside src, in one file."""

import runpy
from pathlib import Path

import pytest
import torch

from mambar.errors import InputError
from mambar.hub.convert import to_official
from mambar.models import VisionMamba
from mambar.nn import MIXERS
from mambar.training.loop.health import layer_statistics

EXAMPLE = Path(__file__).parents[2] / "examples" / "extend" / "mixer.py"


@pytest.fixture
def example(monkeypatch):
    # The entry "conv" is removed again after the test.
    monkeypatch.setitem(MIXERS, "conv", None)
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


def test_layer_statistics_without_selective_scans(example):
    model = example["build"]()
    found = layer_statistics(model, torch.randn(1, 3, 32, 32))
    assert len(found["norm_mean"]) == 2 and "dt_min" not in found


def test_the_released_format_is_refused(example):
    model = example["build"]()
    with pytest.raises(InputError, match="mixer='bidirectional' only"):
        to_official(model.state_dict(), source="mamba-reg", config=model.config)
