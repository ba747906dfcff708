"""Released checkpoints come in and go out again, bit for bit, every key accounted for."""

import pytest
import torch

import golden_cases
from mambar.errors import CheckpointMismatch, InputError
from mambar.hub.convert import convert_checkpoint, detect_source, extract_state_dict, infer_config, to_official

CASES = golden_cases.cases("mambar_model") + golden_cases.cases("vim_model")


def released(case):
    return {name.removeprefix("param/"): case[name] for name in case.tensors if name.startswith("param/")}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_there_and_back(case):
    state = released(case)
    config = infer_config(state, img_size=tuple(case.config["img_size"]))
    source = detect_source(state)
    back = to_official(convert_checkpoint(state, source=source, config=config), source=source, config=config)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) and back[key].shape == state[key].shape for key in state)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything_is_inferred(case):
    config = infer_config(released(case), img_size=tuple(case.config["img_size"]))
    expected = case.config
    names = {
        "patch_size": "patch_size",
        "in_chans": "in_chans",
        "embed_dim": "embed_dim",
        "depth": "depth",
        "num_registers": "num_registers",
        "register_reduction": "reduce",
        "num_classes": "num_classes",
        "d_state": "d_state",
        "d_conv": "d_conv",
        "expand": "expand",
        "dt_rank": "dt_rank",
    }
    assert {ours: getattr(config, ours) for ours in names} == {ours: expected[key] for ours, key in names.items()}
    assert config.size == tuple(expected["img_size"])


def test_a_grid_that_does_not_match_raises():
    state = released(golden_cases.cases("mambar_model")[0])
    with pytest.raises(CheckpointMismatch, match="position table has"):
        infer_config(state, img_size=(4, 4 * 99))
    state["pos_embed"] = state["pos_embed"][:, :-1]
    with pytest.raises(CheckpointMismatch, match="no square grid"):
        infer_config(state)


def test_keys_of_both_sides_are_named():
    state = released(CASES[0])
    config = infer_config(state, img_size=tuple(CASES[0].config["img_size"]))
    state["surplus"] = state.pop("norm_f.weight")
    with pytest.raises(CheckpointMismatch, match=r"missing norm_f\.weight; unexpected surplus"):
        convert_checkpoint(state, source="mamba-reg", config=config)


@pytest.mark.wrong_shapes
def test_an_unknown_source_is_named():
    state = released(CASES[0])
    config = infer_config(state, img_size=tuple(CASES[0].config["img_size"]))
    with pytest.raises(InputError, match="choose 'mamba-reg' or 'vim'"):
        convert_checkpoint(state, source="vit", config=config)


def test_a_wrong_shape_is_named():
    state = released(CASES[0])
    config = infer_config(state, img_size=tuple(CASES[0].config["img_size"]))
    state["layers.0.mixer.D_b"] = state["layers.0.mixer.D_b"][:-1]
    with pytest.raises(CheckpointMismatch, match=r"layers\.0\.mixer\.D_b has shape"):
        convert_checkpoint(state, source="mamba-reg", config=config)


def test_unwrap():
    tensor = torch.zeros(1)
    assert extract_state_dict({"model": {"a": tensor}, "epoch": 3}) == {"a": tensor}
    assert extract_state_dict({"module.a": tensor}) == {"a": tensor}
    with pytest.raises(CheckpointMismatch, match="no tensors: epoch"):
        extract_state_dict({"a": tensor, "epoch": 3})
    with pytest.raises(CheckpointMismatch, match="holds no tensors"):
        extract_state_dict({})


def test_something_else_is_named_as_such():
    with pytest.raises(CheckpointMismatch, match="no released Mamba-R or Vim checkpoint: missing cls_token"):
        infer_config({"weight": torch.zeros(2, 2)})
