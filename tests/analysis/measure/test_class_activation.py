import sys

import numpy as np
import pytest
import torch

from boxed_files import write_tiny_imagenet
from mambar.analysis.analyze import analyze
from mambar.analysis.measure.class_activation import CAM_METHODS, class_activation_maps, token_maps
from mambar.analysis.options import AnalysisOptions
from mambar.data import Preprocessing
from mambar.errors import InputError
from mambar.hub import create_model, save_model
from mambar.models import VisionMamba, VisionMambaConfig
from op_inputs import without_shape_hook


def network(**fields):
    torch.manual_seed(0)
    config = VisionMambaConfig(img_size=32, patch_size=8, embed_dim=16, depth=2, num_classes=3, **fields)
    return VisionMamba(config).eval()


IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fields", [{"num_registers": 4}, {"num_registers": 1, "placement": "middle", "head": "token"}])
def test_map_is_grad_cam_by_hand(fields, need_package):
    need_package("pytorch_grad_cam")
    model = network(**fields)
    maps, labels = class_activation_maps(model, IMAGES, classes=[2, 0])
    kept = []
    hook = model.blocks[-1].norm.register_forward_hook(lambda layer, inputs, output: kept.append(output))
    logits = model(IMAGES)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[[0, 1], [2, 0]].sum(), kept)
    tokens, slope = (token_maps(model, (4, 6))(each) for each in (kept[0], gradient))
    heat = (tokens * slope.mean((2, 3), keepdim=True)).sum(1).relu()
    assert labels.tolist() == [2, 0] and maps.shape == (2, 32, 48) and heat.abs().max() > 0
    # The library rescales to 0 to 1 and resizes bilinearly: the order of the patches stays.
    pooled = torch.nn.functional.avg_pool2d(maps, 8)
    for mine, library in zip(heat, pooled, strict=True):
        assert np.corrcoef(mine.detach().flatten(), library.flatten())[0, 1] > 0.8
        assert mine.argmax() == library.argmax()


def test_registers_are_left_out_of_the_map():
    model = network(num_registers=3)
    patches = torch.arange(24.0).reshape(1, 24, 1).expand(1, 24, 16)
    tokens = model.registers(patches, (4, 6))
    assert torch.equal(token_maps(model, (4, 6))(tokens)[0, 0], torch.arange(24.0).reshape(4, 6))


@pytest.mark.parametrize("method", CAM_METHODS)
def test_every_method_gives_a_map_and_restores_the_model(method, need_package):
    need_package("pytorch_grad_cam")
    model = network(num_registers=2).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        maps, labels = class_activation_maps(model, IMAGES, method=method, layer=0)
    assert maps.shape == (2, 32, 48) and maps.min() >= 0 and maps.max() <= 1 and len(labels) == 2
    assert model.training and not model.blocks[0].norm._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_vision_transformer_has_maps_too(need_package):
    need_package("pytorch_grad_cam")
    model = create_model("timm/vit_tiny_patch16_224", img_size=32, num_classes=3)
    maps, _ = class_activation_maps(model, IMAGES[:, :, :, :32])
    assert maps.shape == (2, 32, 32)


@without_shape_hook
def test_errors_name_the_choice(need_package, monkeypatch):
    need_package("pytorch_grad_cam")
    with pytest.raises(InputError, match="did you mean 'gradcam'"):
        class_activation_maps(network(num_registers=2), IMAGES, method="grad-cam")
    with pytest.raises(InputError, match="layer 7 does not exist"):
        class_activation_maps(network(num_registers=2), IMAGES, layer=7)
    with pytest.raises(InputError, match="need a classifier"):
        class_activation_maps(torch.nn.Linear(2, 2), IMAGES)
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(InputError, match=r"needs the package grad-cam .extra cam"):
        AnalysisOptions(cam="gradcam")


@pytest.mark.slow
def test_the_report_shows_the_map_and_its_class(tmp_path, need_package):
    need_package("pytorch_grad_cam")
    model = network(num_registers=2)
    save_model(tmp_path / "model", model, classes=("a", "b", "c"), preprocessing=Preprocessing(img_size=32))
    options = AnalysisOptions(cam="layercam", gallery=2, probes=(), test_time_registers=0)
    result = analyze(tmp_path / "model", data=write_tiny_imagenet(tmp_path), out=tmp_path / "out", options=options)
    found = result.analysis.results["model"]
    assert found.activation_maps.shape == (2, 4, 4) and found.activation_maps.max() > 0
    page = result.report.read_text("utf-8")
    assert f"layercam: {'abc'[found.activation_labels[0]]}" in page
