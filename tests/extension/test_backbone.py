"""A backbone registered from outside the package is trained, saved, loaded and analyzed like the built-in ones."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mambar
from mambar.analysis.analyzed_model import open_model
from mambar.errors import InputError
from mambar.models.protocol import Backbone, TokenModel
from training import faults, runs

EXAMPLE = Path(__file__).parents[2] / "examples" / "extend" / "backbone.py"
# Runs the example's definitions, in this process or in one that a test starts.
DEFINE = (runpy.run_path, str(EXAMPLE))


def recipe(**changes):
    config = {"patch_size": 4, "embed_dim": 16}
    return runs.tiny(model="mlp_mixer", config=config, drop_path_rate=0.0, health_every=3, **changes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    runpy.run_path(str(EXAMPLE))
    out = tmp_path_factory.mktemp("backbone") / "run"
    assert runs.finish(runs.start(recipe(), out, before=DEFINE)) == [0]
    return out


def test_it_trains_and_logs_norms_of_every_layer(straight):
    rows = runs.read_rows(straight)
    assert [row["step"] for row in rows if row["kind"] == "training"] == list(range(1, 10))
    (first, *_) = [row for row in rows if row["kind"] == "health"]
    assert len(first["norm_mean"]) == 2 and "dt_min" not in first


def test_the_run_loads_and_predicts_the_same(straight):
    model = mambar.load(straight)
    assert isinstance(model, TokenModel) and model.classes == tuple("0123456789")
    weights = load_file(straight / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    mambar.save_model(straight.parent / "again", model)
    again = mambar.load(straight.parent / "again")
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(images), model(images))


def test_it_can_be_analyzed(straight):
    analyzed = open_model(straight)
    assert analyzed.grid == (2, 2)
    assert mambar.token_norms(analyzed.model, torch.randn(2, 3, 8, 8)).shape == (2, 2, 2, 2)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_identically(straight, tmp_path):
    out = tmp_path / "run"
    kill = (faults.all_of, DEFINE, (faults.die_at, "save", 4))
    assert runs.finish(runs.start(recipe(), out, before=kill)) == [-9]
    assert runs.finish(runs.start(recipe(), out, before=DEFINE, resume=True)) == [0]
    assert runs.trace(out) == runs.trace(straight)


def test_another_run_starts_from_its_weights(straight, tmp_path):
    stage = {"start_from": str(straight), "epochs": 1, "max_steps": 1}
    runs.here(runs.tiny(model="same", config={}, drop_path_rate=0.0, **stage), tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_create_model_finds_it_and_names_a_wrong_field():
    runpy.run_path(str(EXAMPLE))
    model = mambar.create_model("mlp_mixer", num_classes=3)
    assert isinstance(model, TokenModel) and model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    # The default of the factory holds where nothing is given.
    assert model.num_classes == 3 and mambar.create_model("mlp_mixer").num_classes == 10
    with pytest.raises(InputError, match=r"'mlp_mixer'.*unexpected keyword argument 'num_registers'"):
        mambar.create_model("mlp_mixer", num_registers=3)
    with pytest.raises(InputError, match=r"did you mean .*mlp_mixer"):
        mambar.create_model("mlp_mixr")
    with pytest.raises(InputError, match="built-in"):
        mambar.register_backbone("timm/vit", type(model))


def test_a_mamba_with_a_mixer_of_its_own_can_be_registered(monkeypatch):
    from mambar.models import BACKBONES, VisionMamba, VisionMambaConfig

    monkeypatch.setitem(BACKBONES, "narrow", lambda **fields: VisionMamba(VisionMambaConfig(embed_dim=32, **fields)))
    assert isinstance(mambar.create_model("narrow", depth=1, img_size=32), Backbone)


def test_the_example_is_one_screen():
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 55
