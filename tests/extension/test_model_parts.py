"""A head, a mixer and a placement are added from outside src, each in one file."""

import runpy
from pathlib import Path

import pytest
import torch

from mambar.errors import InputError
from mambar.hub.convert import to_official
from mambar.models import VisionMamba
from mambar.nn import HEADS, MIXERS, PLACEMENTS
from mambar.training.loop.health import layer_statistics

EXAMPLES = Path(__file__).parents[2] / "examples" / "extend"
# Example → the table and the entry that it registers.
PARTS = {"head.py": (HEADS, "max_mean"), "mixer.py": (MIXERS, "conv"), "placement.py": (PLACEMENTS, "row_centers")}


@pytest.fixture
def build(request, monkeypatch):
    # The entry is removed again after the test.
    monkeypatch.setitem(*PARTS[request.param], None)
    return runpy.run_path(str(EXAMPLES / request.param))["build"]


@pytest.mark.parametrize("build", PARTS, indirect=True)
def test_the_example_trains_saves_and_loads(build):
    model = build()
    images = torch.randn(2, 3, 32, 32)
    logits = model(images)
    assert logits.shape == (2, 1000)
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    again = VisionMamba(type(model.config).from_dict(model.config.to_dict())).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(images), model.eval()(images))


@pytest.mark.parametrize("name", PARTS)
def test_the_example_is_short(name):
    assert len((EXAMPLES / name).read_text("utf-8").splitlines()) <= 40


@pytest.mark.parametrize("build", ["mixer.py"], indirect=True)
def test_layer_statistics_without_selective_scans(build):
    found = layer_statistics(build(), torch.randn(1, 3, 32, 32))
    assert len(found["norm_mean"]) == 2 and "dt_min" not in found


@pytest.mark.parametrize("build", ["mixer.py"], indirect=True)
def test_the_released_format_is_refused(build):
    model = build()
    with pytest.raises(InputError, match="mixer='bidirectional' only"):
        to_official(model.state_dict(), source="mamba-reg", config=model.config)


@pytest.mark.parametrize("build", ["placement.py"], indirect=True)
def test_positions_follow_the_grid(build):
    registers = build().registers
    assert registers.positions(16, (4, 4)) == (2, 7, 12, 17)
    patches = torch.randn(1, 12, 32)
    split = registers.split(registers.insert(patches, (6, 2)), (6, 2))
    assert torch.equal(split.patches, patches)
