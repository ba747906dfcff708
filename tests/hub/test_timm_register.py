"""timm's own list of properties (its tests/test_models.py) holds for every variant, and our weights load through it."""

import json
import math
import os
import subprocess
import sys

import pytest
import timm
import timm.data
import timm.models
import timm.optim
import timm.utils
import torch
from timm.models import FeatureGraphNet
from torchvision.models import feature_extraction

from mambar.data import EvalTransform, Preprocessing
from mambar.errors import CheckpointError, CheckpointMismatch, InputError
from mambar.hub import convert_checkpoint, create_model, files, timm_register, to_official, weights
from mambar.models import VARIANTS, VisionMamba, VisionMambaConfig

NAMES = sorted(VARIANTS)
TINY = VisionMambaConfig(
    img_size=32, patch_size=8, embed_dim=32, depth=3, num_registers=3, register_reduction=2, num_classes=5
)
# A full-size Large holds 1.4 GB; two blocks and a small image show the same properties of every size.
SHORT = {"depth": 2, "img_size": 64}


@pytest.fixture
def run_directory(tmp_path):
    torch.manual_seed(3)
    model = VisionMamba(TINY)
    preprocessing = Preprocessing(img_size=32, crop_pct=0.875, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    files.save_model(tmp_path / "run", model, classes=list("abcde"), preprocessing=preprocessing)
    return tmp_path / "run", model.eval()


def test_every_variant_is_registered():
    assert sorted(timm.list_models(module="timm_register")) == sorted([*NAMES, "vision_mamba"])
    pretrained = {f"{name}.in1k" for name in weights.WEIGHTS} | set(weights.TRAINED)
    assert set(timm.list_pretrained("mambar*")) | set(timm.list_pretrained("vim*")) == pretrained
    assert timm.get_pretrained_cfg("mambar_tiny_patch16_224").num_classes == 1000


@pytest.mark.slow
def test_importing_the_hub_registers_nothing():
    probe = "import sys, mambar.hub; raise SystemExit(any(name in sys.modules for name in ('timm', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", probe], timeout=120).returncode == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_timms_forward_and_configuration(name):
    """test_model_forward and test_model_default_cfgs_non_std."""
    model = timm.create_model(name, pretrained=False, **SHORT).eval()
    cfg, state = model.default_cfg, model.state_dict()
    images = torch.randn(1, 3, 64, 64)
    logits = model(images)
    assert logits.shape == (1, 1000) and torch.isfinite(logits).all()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-5)

    features = model.forward_features(images)
    assert features.shape[-1] == model.num_features
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (1, model.head_hidden_size)
    model.reset_classifier(0)
    assert model.num_classes == 0 and torch.equal(model(images), pooled)
    headless = timm.create_model(name, num_classes=0, **SHORT)
    assert headless(images).shape == pooled.shape == (1, headless.num_features)

    assert cfg["classifier"] + ".weight" in state and cfg["first_conv"] + ".weight" in state
    assert tuple(cfg["input_size"]) == (3, 224, 224)


FIELDS = {"embed_dim": 32, "depth": 2, "patch_size": 8, "img_size": 32, "num_registers": 3, "register_reduction": 2}


def test_pooling_is_switched_as_in_timms_vit():
    """What test_model_default_cfgs asks of reset_classifier and global_pool, and timm's ViT does beside the same."""
    images = torch.randn(2, 3, 32, 32)
    ours = timm.create_model("vision_mamba", **FIELDS).bfloat16().eval()
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=2).bfloat16().eval()
    for model in (ours, vit):
        given = images.bfloat16()
        for num_classes, pool in ((0, ""), (7, "avg"), (0, "token"), (5, "token"), (0, ""), (3, "")):
            model.reset_classifier(num_classes, pool)
            out, tokens = model(given), model.forward_features(given)
            assert out.shape[:-1] == (tokens.shape[:-1] if pool == "" else (2,))
            assert out.shape[-1] == (num_classes or model.num_features) and model.num_classes == num_classes
            assert out.dtype == torch.bfloat16 and not any(each.training for each in model.modules())
            if (num_classes, pool) == (0, ""):
                assert torch.equal(out, tokens)
    unpooled = timm.create_model("vision_mamba", num_classes=0, global_pool="", **FIELDS)
    assert torch.equal(unpooled(images), unpooled.forward_features(images)) and unpooled.num_features == 32
    with pytest.raises(InputError, match="head='map' is not known"):
        ours.reset_classifier(3, "map")


def test_device_and_dtype_are_taken_as_by_timms_vit():
    model = timm.create_model("vision_mamba", device="meta", dtype=torch.bfloat16, **FIELDS)
    assert {(each.device.type, each.dtype) for each in model.parameters()} == {("meta", torch.bfloat16)}
    assert next(timm.create_model("vision_mamba", dtype=torch.float64, **FIELDS).parameters()).dtype == torch.float64


def test_a_head_of_ones_own_fits_num_features():
    """fastai and open_clip build a model without classifier and a linear layer of `num_features` inputs."""
    body = timm.create_model("vision_mamba", num_classes=0, in_chans=1, **FIELDS)
    assert body.default_cfg.get("pool_size") is None and body.num_features == 3 * 16
    head = torch.nn.Linear(body.num_features, 4)
    assert head(body(torch.randn(2, 1, 32, 32))).shape == (2, 4)


@pytest.mark.parametrize("name", NAMES)
def test_timms_backward(name):
    """test_model_backward."""
    model = timm.create_model(name, num_classes=42, **SHORT).train()
    logits = model(torch.randn(2, 3, 64, 64))
    logits.mean().backward()
    assert logits.shape == (2, 42)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_timms_features(name):
    """test_model_forward_features, test_model_forward_intermediates_features, test_model_forward_intermediates."""
    model = timm.create_model(name, features_only=True, depth=3, img_size=64).eval()
    images = torch.randn(1, 3, 64, 96)
    maps = model(images)
    expected = list(zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True))
    assert len(expected) == len(maps) == 3
    for (channels, reduction), each in zip(expected, maps, strict=True):
        assert each.shape == (1, channels, math.ceil(64 / reduction), math.ceil(96 / reduction))

    whole = timm.create_model(name, depth=3, img_size=64).eval()
    final, intermediates = whole.forward_intermediates(images)
    assert len(timm.models.FeatureInfo(whole.feature_info, 3).channels()) == len(intermediates)
    torch.testing.assert_close(final, whole.forward_features(images))


@pytest.mark.skipif(bool(os.environ.get("MAMBAR_SHAPES")), reason="nothing is traced through the shape-checking hook")
@pytest.mark.parametrize("library", [timm.models, feature_extraction], ids=["timm", "torchvision"])
@pytest.mark.parametrize("name", NAMES)
def test_symbolic_tracing(name, library):
    """test_model_forward_fx and test_model_backward_fx: the traced graph is the model, at any size."""
    model = timm.create_model(name, num_classes=42, drop_path_rate=0.5, **SHORT)
    assert {names[-1] for names in library.get_graph_node_names(model)} == {"head.classifier"}
    traced = library.create_feature_extractor(model, {"head.classifier": "out"})
    for size in ((64, 64), (48, 96)):
        images = torch.randn(2, 3, *size)
        assert torch.equal(traced.eval()(images)["out"], model.eval()(images))
    traced.train()(images)["out"].mean().backward()
    assert [name for name, parameter in traced.named_parameters() if parameter.grad is None] == []


@pytest.mark.skipif(bool(os.environ.get("MAMBAR_SHAPES")), reason="nothing is traced through the shape-checking hook")
def test_timms_features_by_symbolic_tracing():
    """test_model_forward_features_fx: any block's stream, patches and registers in sequence order."""
    fields = {"embed_dim": 32, "depth": 4, "patch_size": 8, "img_size": 32, "num_registers": 3, "register_reduction": 2}
    model = timm.create_model("vision_mamba", **fields).eval()
    images = torch.randn(2, 3, 32, 40)
    streams = FeatureGraphNet(model, (0, 2))(images)
    for stream, tokens in zip(streams, model.tokens(images, [0, 2]), strict=True):
        apart = model.registers.split(stream, tokens.grid)
        assert torch.equal(apart.patches, tokens.patches) and torch.equal(apart.registers, tokens.registers)


@pytest.mark.slow
@pytest.mark.skipif(bool(os.environ.get("MAMBAR_SHAPES")), reason="nothing is traced through the shape-checking hook")
@pytest.mark.parametrize("name", NAMES)
def test_timms_export(name):
    """test_model_forward of the exported program, as timm's list has it for torch.export."""
    model = timm.create_model(name, **SHORT).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        program = torch.export.export(model, (images,), strict=False)
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "vision_mamba"])
def test_full_size_forward_at_224(name):
    model = timm.create_model(name).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, *model.default_cfg["input_size"]))
    assert logits.shape == (1, 1000) and torch.isfinite(logits).all()


@pytest.mark.parametrize("indices", [(0,), (0, 2), (-1,), (1, -1), 2])
@pytest.mark.parametrize("norm", [False, True])
def test_any_features_and_no_idle_parameter(indices, norm):
    fields = {"embed_dim": 32, "depth": 4, "patch_size": 8, "img_size": 32, "num_registers": 3, "register_reduction": 2}
    torch.manual_seed(0)
    model = timm.create_model(
        "vision_mamba", features_only=True, out_indices=indices, feature_cfg={"norm": norm}, **fields
    )
    torch.manual_seed(0)
    whole = timm.create_model("vision_mamba", **fields)
    images = torch.randn(2, 3, 32, 40)
    maps = model(images)
    wanted = list(range(2, 4)) if indices == 2 else sorted(index % 4 for index in indices)
    for each, tokens in zip(maps, whole.tokens(images, wanted, tensor="normed" if norm else "residual"), strict=True):
        torch.testing.assert_close(each, tokens.map())
    sum(each.square().sum() for each in maps).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_names_of_timm_and_ours_build_the_same_model():
    theirs = timm.create_model(
        "mambar_tiny_patch16_224", img_size=(64, 96), in_chans=1, drop_path_rate=0.1, drop_rate=0.2, depth=2
    )
    ours = create_model(
        "mambar_tiny_patch16_224", img_size=(64, 96), in_chans=1, drop_path_rate=0.1, drop_rate=0.2, depth=2
    )
    assert theirs.config == ours.config and theirs.config.img_size == (64, 96) and theirs.config.in_chans == 1
    assert timm.create_model("mambar_tiny_patch16_224", depth=1, global_pool="avg").config.head == "avg"
    for wrong in ({"global_pool": "map"}, {"num_heads": 3}):
        with pytest.raises(InputError):
            timm.create_model("mambar_tiny_patch16_224", depth=1, **wrong)


def test_layer_decay_groups_follow_the_depth():
    model = timm.create_model("mambar_tiny_patch16_224", depth=3, num_classes=10)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(names.values())
    scales = [found[f"blocks.{index}.mixer.in_proj.weight"]["lr_scale"] for index in range(3)]
    assert scales == sorted(scales) and found["patch_embed.proj.weight"]["lr_scale"] < scales[0]
    assert found["head.classifier.weight"]["lr_scale"] == 1.0
    for name in ("pos_embed.weight", "registers.embedding", "registers.position", "head.classifier.bias"):
        assert found[name]["weight_decay"] == 0
    assert found["blocks.0.mixer.forward_scan.A_log"]["weight_decay"] == 0.05


def test_exponential_average_follows():
    model = timm.create_model("mambar_tiny_patch16_224", depth=1)
    average = timm.utils.ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        before = model.norm.weight.clone()
        model.norm.weight.add_(1)
    average.update(model)
    torch.testing.assert_close(average.module.norm.weight, before + 0.5)


# Weights


def test_local_dir_gives_the_trained_model(run_directory):
    directory, trained = run_directory
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    assert model.config == trained.config
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), trained(images))
    assert "state_dict" not in model.pretrained_cfg
    data = timm.data.resolve_data_config({}, model=model)
    assert data["crop_pct"] == 0.875 and data["mean"] == [0.5, 0.4, 0.3] and list(data["input_size"]) == [3, 32, 32]
    assert model.pretrained_cfg["label_names"] == list("abcde")
    assert not torch.equal(timm.create_model(f"local-dir:{directory}")(images), trained(images))


def test_hf_hub_gives_the_trained_model(run_directory, monkeypatch):
    directory, trained = run_directory

    def download(repo_id, filename, **_):
        assert repo_id == "someone/model"
        return str(directory / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    model = timm.create_model("hf-hub:someone/model", pretrained=True).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(images), trained(images))


def test_timms_transform_is_ours(run_directory):
    from PIL import Image

    directory, _ = run_directory
    model = timm.create_model(f"local-dir:{directory}")
    pixels = torch.randint(0, 256, (3, 57, 70), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    ours = EvalTransform(preprocessing=files.load(directory).preprocessing)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    torch.testing.assert_close(theirs(image), ours(pixels), rtol=0, atol=1e-6)


def test_local_dir_adapts_size_head_channels_and_features(run_directory):
    directory, trained = run_directory
    name = f"local-dir:{directory}"
    larger = timm.create_model(name, pretrained=True, img_size=(48, 40)).eval()
    images = torch.randn(1, 3, 48, 40)
    torch.testing.assert_close(larger(images), trained(images))
    assert larger.pos_embed.weight.shape[1] == 30

    fresh = timm.create_model(name, pretrained=True, num_classes=7, num_registers=4)
    assert fresh(images).shape == (1, 7)
    assert torch.equal(fresh.blocks[2].mixer.in_proj.weight, trained.blocks[2].mixer.in_proj.weight)

    gray = timm.create_model(name, pretrained=True, in_chans=1).eval()
    torch.testing.assert_close(gray.patch_embed.proj.weight, trained.patch_embed.proj.weight.sum(1, keepdim=True))

    features = timm.create_model(name, pretrained=True, features_only=True, out_indices=(1,)).eval()
    torch.testing.assert_close(features(images)[0], trained.tokens(images, [1])[0].map())


def test_timms_saved_model_comes_back_after_a_change_of_size(run_directory, tmp_path):
    pytest.importorskip("timm.models._input", reason="timm before 1.0.30 saves the size a model was built with")
    directory, _ = run_directory
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    model.set_input_size((24, 40))
    model.reset_classifier(4)
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    images = torch.randn(1, 3, 24, 40)
    assert torch.equal(again(images), model(images)) and again.config.img_size == (24, 40)


def test_a_damaged_run_directory_is_refused(run_directory):
    directory, _ = run_directory
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        timm.create_model(f"local-dir:{directory}", pretrained=True)


def official(config: VisionMambaConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return to_official(VisionMamba(config).state_dict(), source="mamba-reg", config=config)


@pytest.mark.slow
def test_released_weights_are_read_by_our_reader(monkeypatch, tmp_path):
    """`pretrained=True` of a released name converts, resizes and verifies; a changed file is refused."""
    config = VARIANTS["mambar_small_patch16_224"].replace(depth=2)
    state = official(config)
    path = tmp_path / "mambar_small_patch16_224.pth"
    torch.save({"model": state}, path)
    asked = []

    def released(name):
        asked.append(name)
        return path

    monkeypatch.setattr(timm_register, "released_file", released)
    model = timm.create_model("mambar_small_patch16_224", pretrained=True, depth=2).eval()
    whole = VisionMamba(config).eval()
    whole.load_state_dict(convert_checkpoint(state, source="mamba-reg", config=config))
    images = torch.randn(1, 3, 224, 224)
    assert asked == ["mambar_small_patch16_224"]
    assert torch.equal(model(images), whole(images))
    at_384 = timm.create_model("mambar_small_patch16_224", pretrained=True, depth=2, img_size=384, num_classes=10)
    assert at_384.pos_embed.weight.shape == (1, 24 * 24, 384)
    large = torch.randn(1, 3, 384, 384)
    at_384.reset_classifier(0)
    whole.reset_classifier(0)
    torch.testing.assert_close(at_384.eval()(large), whole(large))


def test_a_file_named_by_the_user_is_converted(tmp_path):
    path = tmp_path / "official.pth"
    torch.save({"model": official(TINY)}, path)
    torch.manual_seed(1)
    expected = VisionMamba(TINY).eval()
    fields = TINY.to_dict()
    model = timm.create_model(
        "vision_mamba",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path), "num_classes": 5, "input_size": (3, 32, 32)},
        **fields,
    ).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(images), expected(images))


def test_no_weights_and_wrong_weights_are_named(run_directory):
    with pytest.raises(InputError, match="No weights of mambar_tiny_patch16_224"):
        timm.create_model("mambar_tiny_patch16_224", pretrained=True)
    directory, _ = run_directory
    with pytest.raises(CheckpointMismatch, match="blocks"):
        timm.create_model(f"local-dir:{directory}", pretrained=True, depth=2)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    assert config["architecture"] == "vision_mamba" and "num_classes" not in config["model_args"]
