"""Weights of one size in a model of another."""

import pytest
import torch

import golden_cases
from mambar.errors import CheckpointMismatch
from mambar.hub.convert import convert_checkpoint, infer_config, to_official
from mambar.hub.resize import load_pretrained_weights
from mambar.models import VisionMamba, VisionMambaConfig


@pytest.mark.parametrize("case", golden_cases.cases("finetune"), ids=str)
def test_golden_start_of_fine_tuning(case):
    ckpt = {name.removeprefix("ckpt/"): case[name] for name in case.tensors if name.startswith("ckpt/")}
    fresh = {name.removeprefix("fresh/"): case[name] for name in case.tensors if name.startswith("fresh/")}
    old = infer_config(ckpt)
    new = case.config["new"]
    config = old.replace(
        img_size=new["grid"] * old.patch_size,
        num_registers=new["n"],
        register_reduction=new["r"],
        num_classes=new["classes"],
    )
    model = VisionMamba(config).double().eval()
    start = to_official(model.state_dict(), source="mamba-reg", config=config)
    start.update({name: value.double() for name, value in fresh.items()})
    model.load_state_dict(convert_checkpoint(start, source="mamba-reg", config=config))
    state = convert_checkpoint({k: v.double() for k, v in ckpt.items()}, source="mamba-reg", config=old)
    report = load_pretrained_weights(model, state, old)
    merged = to_official(model.state_dict(), source="mamba-reg", config=config)
    golden_cases.assert_near(merged["pos_embed"], case["merged/pos_embed"], 1e-12)
    assert len(report.newly_initialized) == len(case.info["kept_from_fresh_model"])
    assert len(report.resized) == len(case.info["resized"])
    assert len(report.loaded) == len(case.info["taken_from_checkpoint"])
    with torch.no_grad():
        golden_cases.assert_near(model(case["input"].double()), case["logits"], 1e-10)


def test_another_body_is_refused():
    small = VisionMambaConfig(img_size=32, patch_size=8, embed_dim=32, depth=2, num_registers=2, num_classes=3)
    model = VisionMamba(small.replace(embed_dim=48))
    with pytest.raises(CheckpointMismatch, match="the model needs"):
        load_pretrained_weights(model, VisionMamba(small).state_dict(), small)
    shallower = VisionMamba(small.replace(depth=1))
    with pytest.raises(CheckpointMismatch, match="which the model does not have"):
        load_pretrained_weights(shallower, VisionMamba(small).state_dict(), small)
