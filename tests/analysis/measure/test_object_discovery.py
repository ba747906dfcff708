import json

import numpy as np
import pytest
import torch

from boxed_files import write_tiny_imagenet
from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.analysis.measure.object_discovery import LostOptions, discover_objects, lost
from mambar.cli.main import main
from mambar.data import Preprocessing, Sample, open_dataset
from mambar.data.boxed_images import object_mask
from mambar.errors import InputError
from mambar.hub import save_model
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.nn import Tokens
from op_inputs import without_shape_hook

GRID = (8, 10)


def scene(object_value=(-1.0, 1.0), background=(1.0, 0.2), place=(slice(2, 5), slice(3, 7))):
    """Features of a grid: one vector in the object, another one elsewhere."""
    features = torch.tensor(background).expand(*GRID, 2).clone()
    features[place] = torch.tensor(object_value)
    return features


def find(features, **options):
    return lost(features.flatten(0, 1), GRID, LostOptions(**options))


@pytest.mark.parametrize("options", [{}, {"similarity": "cosine"}, {"center": "image"}, {"num_candidates": 3}])
def test_an_object_unlike_its_background_is_found(options):
    result = find(scene(), **options)
    assert result.box == (3, 2, 7, 5) and result.seed == (2, 3)
    # Each object patch is positively correlated with the 11 others, each background patch with 67 others.
    assert (result.degrees[2:5, 3:7] == 11).all() and result.degrees[0, 0] == 67


def test_the_seed_may_have_the_most_correlations():
    assert find(scene(), seed="most").seed == (0, 0)
    assert find(scene(), seed="most").box == (0, 0, 10, 8)


def test_features_of_one_sign_need_centering_or_a_bias():
    """All products are positive, as with a large common component: LOST finds the whole image."""
    features = scene(object_value=(1.0, -0.8), background=(1.0, 0.8))
    assert find(features).box == (0, 0, 10, 8)
    assert find(features, center="image").box == find(features, bias=-0.5).box == (3, 2, 7, 5)


def test_only_patches_connected_with_the_seed_count():
    features = scene()
    features[7, 9] = torch.tensor([-1.0, 1.0])
    assert find(features).box == (3, 2, 7, 5)


def test_the_box_is_the_seed_if_nothing_is_correlated():
    assert find(scene(), bias=-100.0).box == (0, 0, 1, 1)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_the_features_does_not_matter(scale):
    assert find(scale * scene(object_value=(1.0, -0.8), background=(1.0, 0.8)), bias=-0.5).box == (3, 2, 7, 5)


@without_shape_hook
@pytest.mark.parametrize(
    "wrong", [{"seed": "least"}, {"similarity": "l2"}, {"bias": "x"}, {"num_candidates": 0}, {"min_iou": 1.5}]
)
def test_wrong_choices_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        LostOptions(**wrong)


class DarkPatches(torch.nn.Module):
    """A token model whose features tell dark patches from bright ones; layer 0 sees nothing."""

    num_layers, patch_size, embed_dim = 2, 8, 2

    def tokens(self, images, layers=None, *, tensor="residual"):
        means = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8)[:, 0]
        patches = torch.stack([means, torch.full_like(means, 0.1)], -1).flatten(1, 2)
        empty = patches[:, :0]
        grid = (means.shape[1], means.shape[2])
        values = {0: torch.ones_like(patches), 1: patches}
        return [Tokens(patches=values[layer], registers=empty, grid=grid) for layer in layers]

    def forward(self, images):
        return images.mean((2, 3))


def test_corloc_of_known_boxes(tmp_path):
    dataset = open_dataset(write_tiny_imagenet(tmp_path), "val")
    analyzed = AnalyzedModel(name="dark", model=DarkPatches(), preprocessing=Preprocessing(img_size=64))
    found = discover_objects(analyzed, dataset, LostOptions(), [0, 1], num_images=5, num_shown=2, batch_size=4)
    blind, seeing, whole = found.layers
    # The drawn boxes are whole patches, so the right layer finds them exactly; the image has 3.2 times their area.
    assert (seeing.layer, seeing.corloc, seeing.iou, seeing.num_images) == (1, 1.0, 1.0, 5)
    assert blind.corloc == whole.corloc == 0.0 and whole.layer is None and whole.iou == pytest.approx(0.3125)
    assert seeing.low < 1 and whole.high > 0
    assert len(found.shown) == 2 and tuple(found.shown[0].boxes[0]) == found.shown[0].found == (8, 16, 40, 56)


@pytest.mark.parametrize(("size", "crop_pct"), [((64, 64), 1.0), ((48, 96), 0.8), ((32, 32), 0.875)])
def test_boxes_follow_the_resized_and_cropped_image(size, crop_pct):
    preprocessing = Preprocessing(img_size=size, crop_pct=crop_pct)
    analyzed = AnalyzedModel(name="", model=DarkPatches(), preprocessing=preprocessing)
    boxes = torch.tensor([[20.0, 30, 70, 100], [0, 0, 1, 1]])
    resized = analyzed.resize_boxes(boxes, 120, 90)
    image = torch.zeros(3, 120, 90, dtype=torch.uint8)
    mask = analyzed.resize_mask(object_mask(Sample(image, 0, targets={"boxes": boxes[:1]})))
    rows, cols = (mask.amax(axis).nonzero().flatten() for axis in (1, 0))
    expected = torch.tensor([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]).float()
    assert (resized[0] - expected).abs().max() <= 1
    assert len(resized) == 1 or crop_pct == 1.0


@pytest.mark.slow
def test_the_command_measures_boxes_and_finds_objects(tmp_path, capsys):
    torch.manual_seed(0)
    config = VisionMambaConfig(img_size=64, patch_size=8, embed_dim=16, depth=2, num_registers=2, num_classes=3)
    save_model(tmp_path / "model", VisionMamba(config), preprocessing=Preprocessing(img_size=64))
    data = write_tiny_imagenet(tmp_path)
    common = ["analyze", str(tmp_path / "model"), "--data", str(data), "--probes", "", "--test-time-registers", "0"]
    with pytest.raises(SystemExit) as ended:
        main([*common, "--discover", "tensor=residual,center=image", "--out", str(tmp_path / "out"), "--gallery", "2"])
    assert ended.value.code == 0
    content = json.loads((tmp_path / "out/numbers.json").read_text("utf-8"))
    numbers = content["models"]["model"]
    assert content["options"]["discover"]["center"] == "image"
    assert [row["layer"] for row in numbers["object_discovery"]] == [0, 1, None]
    top = numbers["ground_truth"][2]
    assert top["objects"] == "boxes" and len(top["layers"]) == 2
    assert all(0 <= layer["outlier_background_low"] <= layer["outlier_background_high"] <= 1 for layer in top["layers"])
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "CorLoc" in page and "center=image" in page and "objects: boxes" in page
    assert (tmp_path / "out/figures/objects-0.png").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*common, "--discover", "centre=image", "--out", str(tmp_path / "other")])
    assert ended.value.code == 2 and "did you mean 'center'?" in capsys.readouterr().err
    assert np.isfinite(numbers["object_discovery"][0]["corloc"])
