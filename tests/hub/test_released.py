"""`load_official` takes what was released, and nothing that runs code."""

import argparse
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

import golden_cases
import mambar
from mambar.errors import CheckpointError, CheckpointMismatch

CASES = golden_cases.cases("mambar_model") + golden_cases.cases("vim_model")


def released(case):
    return {name.removeprefix("param/"): case[name] for name in case.tensors if name.startswith("param/")}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_of_any_released_model(case):
    model = mambar.load_official(released(case), img_size=tuple(case.config["img_size"])).double().eval()
    with torch.no_grad():
        golden_cases.assert_near(model(case["input"].double()), case["logits"], 1e-10)


@pytest.mark.parametrize("wrap", ["bare", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files(tmp_path, wrap, suffix):
    case = CASES[0]
    state, path = released(case), tmp_path / f"released{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        # The released files pickle an argparse.Namespace beside the weights.
        torch.save({"model": state, "args": argparse.Namespace(lr=1e-3)} if wrap == "model" else state, path)
    model = mambar.load_official(path, img_size=tuple(case.config["img_size"]))
    assert torch.equal(model.registers.embedding, state["cls_token"])


class Runs:
    """Writes a marker when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "hostile.pth"
    torch.save({"model": released(CASES[0]), "epoch": Runs(marker)}, path)
    with pytest.raises(CheckpointError, match="more than tensors and plain data"):
        mambar.load_official(path)
    assert not marker.exists()
    # Negative control: the payload does run where the safe reader is not used.
    pickle.loads(pickle.dumps(Runs(marker))).close()
    assert marker.exists()


def test_compressed_records_are_refused_before_reading(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as container:
        container.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="compressed records"):
        mambar.load_official(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(50)])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged\.pth"):
        mambar.load_official(path)


def test_a_missing_file():
    with pytest.raises(CheckpointError, match=r"There is no file nowhere\.pth"):
        mambar.load_official("nowhere.pth")


def test_missing_keys():
    state = released(CASES[0])
    del state["norm_f.weight"]
    with pytest.raises(CheckpointMismatch, match=r"missing norm_f\.weight"):
        mambar.load_official(state, img_size=tuple(CASES[0].config["img_size"]))
