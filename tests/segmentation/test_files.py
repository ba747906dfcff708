"""What is saved comes back; what is damaged does not."""

import json

import pytest
import torch

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import CheckpointError, CheckpointMismatch, InputError
from mambar.hub.config_file import with_checksum
from mambar.hub.files import load, save_model
from mambar.segmentation import Inference, Segmenter, is_segmenter, load_segmenter, load_with_inference, save_segmenter


@pytest.fixture
def model(tiny_mamba):
    model = Segmenter(tiny_mamba, num_classes=2, channels=8, broadcast=True)
    model.classes, model.palette = ("a", "b"), ((1, 2, 3), (4, 5, 6))
    model.preprocessing = Preprocessing(img_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    return model.eval()


@pytest.fixture
def saved(model, tmp_path):
    save_segmenter(tmp_path / "run", model, name="tiny", inference=Inference(crop=32, stride=20), force=False)
    return tmp_path / "run"


def test_round_trip(model, saved):
    again, inference = load_with_inference(saved)
    images = torch.randn(1, 3, 40, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert not again.training and inference == Inference(crop=32, stride=20)
    assert (again.classes, again.palette) == (model.classes, model.palette)
    assert again.preprocessing == model.preprocessing and again.config == model.config


def test_kinds_are_told_apart(saved, tmp_path, tiny_mamba):
    save_model(tmp_path / "classifier", tiny_mamba)
    assert is_segmenter(saved) and not is_segmenter(tmp_path / "classifier") and not is_segmenter(tmp_path)
    with pytest.raises(CheckpointError, match="describes no segmenter"):
        load_segmenter(tmp_path / "classifier")
    with pytest.raises(InputError, match=r"is a segmenter, not a classifier; use .mambar segment"):
        load(saved)
    with pytest.raises(InputError, match="no segmenter at"):
        load_segmenter(tmp_path / "nowhere")


@pytest.mark.rel
def test_nothing_is_overwritten(model, saved):
    with pytest.raises(InputError, match="already holds"):
        save_segmenter(saved, model, name=None, inference=Inference(), force=False)
    save_segmenter(saved, model, name=None, inference=Inference(), force=True)


@pytest.mark.rel
def test_damaged_weights_are_refused(saved):
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        load_segmenter(saved)


@pytest.mark.rel
@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 99},
        {"segmenter": {"num_classes": 3}},
        {"segmenter": {"channels": 10**6}},
        {"segmenter": {"chanels": 8}},
        {"segmenter": None},
        {"backbone": {"embed_dim": 10**6}},
        {"classes": ["a"]},
        {"palette": [[1, 2, 3], [4, 5, 600]]},
        {"palette": [[1, 2], [4, 5]]},
        {"preprocessing": {"img_size": "x"}},
        {"inference": {"stride": 10**9}},
        {"weights": None},
        {"kind": "classifier"},
    ],
)
def test_nonsense_is_one_line(saved, change):
    path = saved / "config.json"
    content = json.loads(path.read_text("utf-8"))
    for name, value in change.items():
        mixed = isinstance(value, dict) and isinstance(content["mambar"][name], dict)
        content["mambar"][name] = {**content["mambar"][name], **value} if mixed else value
    path.write_text(json.dumps(with_checksum(content)), "utf-8")
    with pytest.raises((CheckpointError, InputError)) as caught:
        load_segmenter(saved)
    assert "\n" not in str(caught.value)


def test_other_weights_are_named(saved, tiny_mamba):
    other = Segmenter(tiny_mamba, num_classes=2, channels=16, broadcast=True)
    other.classes, other.palette = ("a", "b"), ((1, 2, 3), (4, 5, 6))
    config = (saved / "config.json").read_text("utf-8")
    save_segmenter(saved, other, name=None, inference=Inference(), force=True)
    content, recorded = json.loads(config), json.loads((saved / "config.json").read_text("utf-8"))
    content["mambar"]["weights"] = recorded["mambar"]["weights"]
    (saved / "config.json").write_text(json.dumps(with_checksum(content)), "utf-8")
    with pytest.raises(CheckpointMismatch, match=r"classifier.weight has shape \(2, 16, 1, 1\), the model \(2, 8"):
        load_segmenter(saved)


def test_not_finite_is_never_written(model, tmp_path):
    with torch.no_grad():
        model.decoder.head.classifier.bias[0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        save_segmenter(tmp_path / "bad", model, name=None, inference=Inference(), force=False)
    assert not list((tmp_path / "bad").iterdir())


def test_other_backbones_are_refused(backbone, tmp_path):
    with pytest.raises(InputError, match="PatchModel is not saved"):
        save_segmenter(tmp_path, Segmenter(backbone, channels=8), name=None, inference=Inference(), force=False)
