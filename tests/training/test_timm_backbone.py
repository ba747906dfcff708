"""A vision transformer of timm is trained, resumed, loaded, evaluated and segmented by the recipes of Mamba-R."""

import pytest
import torch

import mambar
from mambar.analysis.analyzed_model import open_model
from mambar.errors import InputError
from mambar.evaluation.prediction import predict_image
from mambar.hub.create import create_model
from mambar.hub.resize import load_pretrained_weights
from mambar.models.timm_vit import TimmViT
from mambar.recipes.evaluate_run import evaluate_run
from mambar.recipes.folder import RECIPE as FOLDER
from mambar.training.loop.optim import param_groups
from mambar.training.recipe import Stage
from training import faults, runs

SMALL = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
NAME = "timm/vit_tiny_patch16_224"


def recipe(**changes):
    return runs.tiny(model=NAME, config=SMALL, **changes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("timm") / "run"
    assert runs.finish(runs.start(recipe(layer_decay=0.8, health_every=4), out)) == [0]
    return out


def test_the_run_loads_predicts_evaluates_and_is_analyzed(straight):
    model = mambar.load(straight)
    assert isinstance(model, TimmViT) and model.num_layers == 2 and model.preprocessing.img_size == 8
    assert len(predict_image(model, torch.zeros(3, 8, 8, dtype=torch.uint8), top=3)) == 3
    last = [row for row in runs.read_rows(straight) if row["kind"] == "evaluation"][-1]
    assert evaluate_run(straight).top1 == pytest.approx(last["top1"])
    assert open_model(straight).grid == (2, 2)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_identically(straight, tmp_path):
    out = tmp_path / "run"
    same = recipe(layer_decay=0.8, health_every=4)
    assert runs.finish(runs.start(same, out, before=(faults.die_at, "save", 4))) == [-9]
    assert runs.finish(runs.start(same, out, resume=True)) == [0]
    assert runs.trace(out) == runs.trace(straight)


def test_a_larger_size_starts_from_the_run(straight, tmp_path):
    stage = {"start_from": str(straight), "img_size": 16, "epochs": 1, "max_steps": 1}
    runs.here(runs.tiny(model="same", config={}, **stage), tmp_path / "run")
    assert open_model(tmp_path / "run").grid == (4, 4)


@pytest.mark.slow
def test_a_segmenter_trains_saves_and_loads(tmp_path, monkeypatch):
    import mambar.segmentation

    options = {"channels": 8, "aux_channels": 8, "resize": None, "eval_crop": 32, "eval_stride": 16}
    changes = {"task": "segmentation", "task_options": options, "data": "shapes", "data_options": {"limit": 32}}
    stage = {"img_size": 32, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "epochs": 1, "max_steps": 2}
    monkeypatch.setattr("mambar.training.task.Task.report", lambda *arguments, **named: None)
    runs.here(recipe(**changes, **stage), tmp_path / "run")
    model = mambar.segmentation.load_segmenter(tmp_path / "run")
    assert isinstance(model.backbone, TimmViT) and model(torch.randn(1, 3, 32, 32)).shape[-2:] == (32, 32)


def test_the_folder_recipe_takes_it(tmp_path):
    changed = FOLDER.with_overrides([f"model={NAME}", "img_size=32", "config.depth=2"])
    # The fields of Mamba-R in the recipe do not apply.
    assert dict(changed.config) == {"depth": 2}
    assert FOLDER.with_overrides(["model=mambar_small_patch16_224"]).config == FOLDER.config
    with pytest.raises(InputError, match="no argument 'num_registers'"):
        runs.here(recipe().with_overrides(["config.num_registers=2"]), tmp_path / "run")


def test_pretrained_weights_are_resized_and_the_head_starts_fresh():
    source, model = (
        create_model(NAME, img_size=size, num_classes=classes, **SMALL) for size, classes in ((8, 3), (16, 5))
    )
    fresh = model.get_classifier().weight.clone()
    info = load_pretrained_weights(model, source.state_dict(), source.config)
    assert info.resized == ("model.pos_embed",)
    assert info.newly_initialized == ("model.head.weight", "model.head.bias")
    assert torch.equal(model.get_classifier().weight, fresh)
    assert torch.equal(model.model.blocks[1].mlp.fc1.weight, source.model.blocks[1].mlp.fc1.weight)


def test_layer_decay_follows_timm():
    from timm.optim import param_groups_layer_decay

    model = create_model(NAME, img_size=8, num_classes=3, **SMALL)
    ours = {name: part["lr_scale"] for part in param_groups(model, Stage(layer_decay=0.7)) for name in part["names"]}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in param_groups_layer_decay(model, layer_decay=0.7):
        assert all(ours[names[id(each)]] == pytest.approx(group["lr_scale"]) for each in group["params"])
