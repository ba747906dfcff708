"""Models on disk: written whole or not at all, verified when read."""

import json
import os
import stat

import pytest
import torch

import mambar
from mambar.atomic_files import write_atomically
from mambar.data.transforms.classification import Preprocessing
from mambar.errors import CheckpointError, CheckpointMismatch, DiskError, InputError
from mambar.evaluation.prediction import predict_image
from mambar.hub.config_file import CONFIG, with_checksum
from mambar.hub.files import WEIGHTS
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.models.timm_vit import as_vision_mamba

SMALL = VisionMambaConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_registers=2, num_classes=3)


@pytest.fixture
def saved(tmp_path):
    model = VisionMamba(SMALL).eval()
    preprocessing = Preprocessing(img_size=16, crop_pct=0.9, mean=(0.5,) * 3, std=(0.25,) * 3)
    mambar.save_model(tmp_path / "run", model, classes=["ant", "bee", "<c>"], preprocessing=preprocessing)
    return model, tmp_path / "run"


def test_a_model_comes_back_with_names_and_preprocessing(saved):
    model, directory = saved
    loaded = mambar.load(directory)
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(images), model(images))
    assert loaded.classes == ("ant", "bee", "<c>")
    assert loaded.preprocessing.crop_pct == 0.9 and loaded.config == SMALL
    assert not loaded.training
    assert torch.equal(mambar.load(directory / WEIGHTS)(images), model(images))


def test_nothing_is_overwritten_by_surprise(saved):
    model, directory = saved
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(InputError, match=r"already holds config.json and model.safetensors.*--force"):
        mambar.save_model(directory, model)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    mambar.save_model(directory, model, classes=["x", "y", "z"], force=True)
    assert mambar.load(directory).classes == ("x", "y", "z")


def test_every_flipped_byte_is_refused(saved):
    _, directory = saved
    data = (directory / WEIGHTS).read_bytes()
    for place in (0, 9, len(data) // 2, len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1
        (directory / WEIGHTS).write_bytes(flipped)
        with pytest.raises(CheckpointError, match="is damaged: sha256 is"):
            mambar.load(directory)
    (directory / WEIGHTS).write_bytes(data)
    mambar.load(directory)


def test_every_changed_value_in_config_json_is_refused(saved):
    _, directory = saved
    text = (directory / CONFIG).read_text("utf-8")
    for old, new in (
        ('"norm_eps": 1e-05', '"norm_eps": 1e-04'),
        ('"ant"', '"ent"'),
        ('"crop_pct": 0.9', '"crop_pct": 0.8'),
    ):
        assert old in text
        (directory / CONFIG).write_text(text.replace(old, new), "utf-8")
        with pytest.raises(CheckpointError, match=r"config\.json was edited or is damaged.*verify_checksums=False"):
            mambar.load(directory)
    (directory / CONFIG).write_text(text, "utf-8")
    mambar.load(directory)


def test_every_flipped_bit_in_config_json_is_refused_or_changes_nothing(saved):
    _, directory = saved
    data = (directory / CONFIG).read_bytes()
    content = json.loads(data)
    for bit in range(0, 8 * len(data), 13):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (directory / CONFIG).write_bytes(flipped)
        try:
            mambar.load(directory)
        except CheckpointError:
            continue
        assert json.loads(flipped) == content


def test_weights_of_another_model_are_refused(saved, tmp_path):
    _, directory = saved
    mambar.save_model(tmp_path / "other", VisionMamba(SMALL))
    (tmp_path / "other" / WEIGHTS).replace(directory / WEIGHTS)
    with pytest.raises(CheckpointError, match="is damaged: sha256 is"):
        mambar.load(directory)


def test_a_deliberate_edit_is_accepted_and_logged(saved, caplog):
    _, directory = saved
    text = (directory / CONFIG).read_text("utf-8")
    (directory / CONFIG).write_text(text.replace('"norm_eps": 1e-05', '"norm_eps": 0.001'), "utf-8")
    assert mambar.load(directory, verify_checksums=False).config.norm_eps == 0.001
    assert "config.json was edited" in caplog.text


def test_files_of_format_1_need_no_checksum(saved):
    model, directory = saved
    content = json.loads((directory / CONFIG).read_text("utf-8"))
    del content["mambar"]["sha256"]
    (directory / CONFIG).write_text(json.dumps(content), "utf-8")
    with pytest.raises(CheckpointError, match="checksum"):
        mambar.load(directory)
    content["mambar"]["format_version"] = 1
    (directory / CONFIG).write_text(json.dumps(content), "utf-8")
    assert mambar.load(directory).config == model.config


@pytest.mark.parametrize("version", [0, -5, True, "2", None, 1.0])
def test_an_invalid_format_version_is_refused(saved, version):
    _, directory = saved
    content = json.loads((directory / CONFIG).read_text("utf-8"))
    content["mambar"]["format_version"] = version
    (directory / CONFIG).write_text(json.dumps(with_checksum(content)), "utf-8")
    with pytest.raises(CheckpointError, match="format_version"):
        mambar.load(directory)


def test_a_key_that_is_given_twice_is_refused(saved):
    _, directory = saved
    text = (directory / CONFIG).read_text("utf-8")
    (directory / CONFIG).write_text(text.replace('"depth": 1', '"depth": 1, "depth": 1'), "utf-8")
    with pytest.raises(CheckpointError, match="given twice"):
        mambar.load(directory)


def test_a_newer_format_is_refused(saved):
    _, directory = saved
    content = json.loads((directory / CONFIG).read_text("utf-8"))
    content["mambar"]["format_version"] = 99
    (directory / CONFIG).write_text(json.dumps(with_checksum(content)), "utf-8")
    with pytest.raises(CheckpointError, match="update mambar"):
        mambar.load(directory)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"mambar": 3}'])
def test_a_damaged_config_is_one_line(saved, text):
    _, directory = saved
    (directory / CONFIG).write_text(text, "utf-8")
    with pytest.raises(CheckpointError) as caught:
        mambar.load(directory)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_weights_outside_the_directory_are_refused(saved):
    _, directory = saved
    content = json.loads((directory / CONFIG).read_text("utf-8"))
    content["mambar"]["weights"] = {"file": "../elsewhere.safetensors"}
    (directory / CONFIG).write_text(json.dumps(with_checksum(content)), "utf-8")
    with pytest.raises(CheckpointError, match="outside its own directory"):
        mambar.load(directory)


def test_other_weights_name_both_sides(saved, tmp_path):
    _, directory = saved
    mambar.save_model(tmp_path / "other", VisionMamba(SMALL.replace(depth=2)))
    (tmp_path / "other" / WEIGHTS).replace(directory / "others.safetensors")
    with pytest.raises(CheckpointMismatch, match="unexpected"):
        mambar.load(directory / "others.safetensors")


def test_non_finite_weights_are_not_written(tmp_path):
    model = VisionMamba(SMALL)
    with torch.no_grad():
        model.blocks[0].mixer.forward_scan.D[3] = float("nan")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mixer\.forward_scan\.D holds NaN or Inf"):
        mambar.save_model(tmp_path / "run", model)
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_nothing_there():
    with pytest.raises(InputError, match=r"There is no model at nowhere .*; give a run directory"):
        mambar.load("nowhere")


def test_write_atomically_follows_the_umask_and_replaces_links(tmp_path):
    target, victim = tmp_path / "file", tmp_path / "victim"
    victim.write_bytes(b"precious")
    target.symlink_to(victim)
    before = os.umask(0o027)
    try:
        write_atomically(target, b"new")
    finally:
        os.umask(before)
    assert target.read_bytes() == b"new" and not target.is_symlink()
    assert victim.read_bytes() == b"precious"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"could not be written \(3 bytes\): No space left"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_class_name_that_is_no_text_comes_back(tmp_path):
    config = VisionMambaConfig(
        img_size=16, patch_size=8, embed_dim=8, depth=1, num_registers=2, num_classes=2, d_state=4
    )
    # What Python makes of a folder called by the byte E9.
    classes = ["caf\udce9", "naïve 猫"]
    mambar.save_model(tmp_path / "run", VisionMamba(config), classes=classes)
    assert list(mambar.load(tmp_path / "run").classes) == classes
    assert "naïve 猫" in (tmp_path / "run" / "config.json").read_text("utf-8")


def timm_backbone():
    return mambar.create_model(
        "timm/deit_tiny_patch16_224", num_classes=3, img_size=32, drop_path_rate=0.1, embed_dim=24, depth=2, num_heads=2
    ).eval()


def test_a_timm_backbone_comes_back(tmp_path):
    model = timm_backbone()
    preprocessing = Preprocessing(img_size=32, crop_pct=0.9)
    mambar.save_model(tmp_path / "run", model, classes=["a", "b", "c"], preprocessing=preprocessing)
    loaded = mambar.load(tmp_path / "run")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    assert loaded.classes == ("a", "b", "c") and loaded.preprocessing == preprocessing
    assert loaded.config == model.config and loaded.config.arguments["drop_path_rate"] == 0.1


def test_timm_loads_the_directory_of_its_backbone(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm_backbone()
    mambar.save_model(tmp_path / "run", model)
    images = torch.randn(2, 3, 32, 32)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval()
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timm_model": "resnet18"}, "resnet18|VisionTransformer|ResNet"),
        ({"timm_model": "vit_giant_patch14_224"}, "describes a model of"),
        ({"timm_model": "local-dir:/etc"}, "timm has no model"),
        ({"arguments": {"checkpoint_path": "/etc/passwd"}}, "no argument 'checkpoint_path'"),
        ({"arguments": {"depth": 10**9}}, "depth=1000000000 must be from 0 to 256"),
        ({"arguments": 3}, "not a valid model configuration"),
    ],
    ids=str,
)
@pytest.mark.timeout(60)
def test_a_hostile_timm_configuration_is_one_error(tmp_path, change, words):
    mambar.save_model(tmp_path / "run", timm_backbone())
    content = json.loads((tmp_path / "run" / CONFIG).read_text("utf-8"))
    fields = content["mambar"]["config"]
    if change.get("timm_model") == "vit_giant_patch14_224":
        fields["arguments"] = {"num_classes": 3}
    fields |= change
    (tmp_path / "run" / CONFIG).write_text(json.dumps(with_checksum(content)), "utf-8")
    with pytest.raises(CheckpointError, match=words) as caught:
        mambar.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_timm_backbone_predicts_and_is_refused_where_a_vision_mamba_is_needed(tmp_path):
    mambar.save_model(tmp_path / "run", timm_backbone(), classes=["a", "b", "c"])
    model = mambar.load(tmp_path / "run")
    best = predict_image(model, torch.zeros(3, 32, 32, dtype=torch.uint8), top=1)[0]
    assert best.name in ("a", "b", "c")
    with pytest.raises(InputError, match="Export is for Mamba-R and Vim models only; got TimmViT"):
        as_vision_mamba(model, "Export")
