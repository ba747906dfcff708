import json
from pathlib import Path

import pytest
import torch

from mambar.hub import create_model
from mambar.hub.convert import to_official
from mambar.models.config import variant
from mambar.models.vision_mamba import VisionMamba
from mambar.training.classification import ClassificationTask
from mambar.training.loop.optim import Optimizer, is_decayed, param_groups, set_training_mode
from mambar.training.recipe import Stage

GOLDEN = Path(__file__).parents[2] / "golden" / "manifest.json"


def small(**fields) -> VisionMamba:
    base = {
        "img_size": 8,
        "num_classes": 5,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 3,
        "num_registers": 2,
        "register_reduction": 2,
    }
    return create_model("mambar_tiny_patch16_224", **{**base, **fields})


@pytest.mark.parametrize("name, source", [("mambar_base_patch16_224", "mamba-reg"), ("vim_tiny_patch16_224", "vim")])
def test_the_official_rule_exempts_what_the_released_training_exempts(name, source):
    manifest = json.loads(GOLDEN.read_text("utf-8"))
    [entry] = [entry for key, entry in manifest["models"].items() if key.startswith(name)]
    with torch.device("meta"):
        model = VisionMamba(variant(name))
    exempt = model.no_weight_decay()
    # To map names through the converter, each tensor is filled with the index of its name.
    names = [name for name, _ in model.named_parameters()]
    state = {name: torch.full(p.shape, float(index)) for index, (name, p) in enumerate(model.named_parameters())}
    official = to_official(state, source=source, config=model.config)
    ours = {theirs: names[int(tensor.flatten()[0])] for theirs, tensor in official.items()}
    parameters = dict(model.named_parameters())
    found = {t for t, own in ours.items() if not is_decayed(own, parameters[own], exempt, "official")}
    assert found == set(entry["no_weight_decay"]["effective_in_released_training"])


def test_the_corrected_rule_also_exempts_A_log_and_nothing_else():
    model = small()
    exempt = model.no_weight_decay()
    differ = {
        name
        for name, p in model.named_parameters()
        if is_decayed(name, p, exempt, "official") != is_decayed(name, p, exempt, "corrected")
    }
    assert differ == {name for name, _ in model.named_parameters() if name.endswith("A_log")} != set()


def test_every_trainable_parameter_is_in_one_group():
    model = small()
    names = [name for part in param_groups(model, Stage(layer_decay=0.7)) for name in part["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_layer_decay_is_timms():
    from timm.optim import param_groups_layer_decay

    model = small()
    ours = {
        name: (part["lr_scale"], part["weight_decay"])
        for part in param_groups(model, Stage(layer_decay=0.7, weight_decay=0.05))
        for name in part["names"]
    }
    names = {id(p): name for name, p in model.named_parameters()}
    exempt = model.no_weight_decay()
    theirs = param_groups_layer_decay(model, weight_decay=0.05, no_weight_decay_list=exempt, layer_decay=0.7)
    for group in theirs:
        for parameter in group["params"]:
            scale, decay = ours[names[id(parameter)]]
            assert scale == pytest.approx(group["lr_scale"])
            assert decay == group["weight_decay"]


def test_a_frozen_backbone_trains_the_head_only_and_has_no_drop_path():
    model = small(drop_path_rate=0.5)
    ClassificationTask.freeze_backbone(None, model, model)
    parts = param_groups(model, Stage())
    assert {name.split(".")[0] for part in parts for name in part["names"]} == {"head"}
    set_training_mode(model)
    assert model.head.training and not model.blocks[0].training
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.forward_features(images), model.forward_features(images))


@pytest.mark.slow
def test_the_optimizer_state_is_restored_bit_for_bit():
    torch.manual_seed(0)
    model, stage = small(), Stage()
    optimizer = Optimizer(param_groups(model, stage), stage)
    images = torch.randn(2, 3, 8, 8)

    def step(of, using):
        for parameter in of.parameters():
            parameter.grad = None
        of(images).square().sum().backward()
        using.step(1e-3)

    for _ in range(3):
        step(model, optimizer)
    copy_of_model = small()
    copy_of_model.load_state_dict(model.state_dict())
    other = Optimizer(param_groups(copy_of_model, stage), stage)
    other.load({name: value.clone() for name, value in optimizer.state().items()})
    step(model, optimizer)
    step(copy_of_model, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy_of_model.parameters(), strict=True))


def test_the_rate_of_a_group_is_scaled():
    model = small()
    stage = Stage(layer_decay=0.5)
    optimizer = Optimizer(param_groups(model, stage), stage)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.8)
    rates = {group["lr"] for group in optimizer.adamw.param_groups}
    assert rates == {0.8 * 0.5**depth for depth in range(5)}
