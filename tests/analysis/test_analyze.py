import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mambar.analysis.analyze import analyze
from mambar.analysis.analyze_model import analyze_model
from mambar.analysis.analyzed_model import open_model
from mambar.analysis.images import sample_gallery
from mambar.analysis.options import AnalysisOptions, default_layers
from mambar.data import Preprocessing
from mambar.data.registry import open_dataset
from mambar.errors import InputError
from mambar.hub import save_model
from mambar.models import VisionMamba, VisionMambaConfig
from op_inputs import without_shape_hook

OPTIONS = AnalysisOptions(gallery=1, num_images=24, batch_size=8, test_time_registers=2)
SHAPES = {"img_size": 32, "num_classes": 3, "num_images": 24}


def model(num_registers, seed=0, **fields):
    torch.manual_seed(seed)
    config = VisionMambaConfig(
        img_size=32, patch_size=8, embed_dim=16, depth=3, num_registers=num_registers, num_classes=3, **fields
    )
    return VisionMamba(config).eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two saved models: a Mamba-R, and a Vim in which one channel writes high-norm tokens."""
    folder = tmp_path_factory.mktemp("runs")
    vim = model(1, placement="middle", head="token")
    with torch.no_grad():
        vim.blocks[1].mixer.out_proj.weight[:, 3] *= 3e4
    preprocessing = Preprocessing(img_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    for name, network in {"mambar": model(4, register_reduction=2), "vim": vim}.items():
        save_model(folder / name, network, classes=("disc", "square", "triangle"), preprocessing=preprocessing)
    return folder


@pytest.fixture(scope="module")
def shapes(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "shapes"
    return analyze(runs / "mambar", compare=runs / "vim", data="shapes", data_options=SHAPES, out=out, options=OPTIONS)


def text_of(path):
    page = path.read_text("utf-8")
    parser, words = HTMLParser(), []
    parser.handle_data = words.append
    parser.feed(page)
    return page, " ".join(words)


@pytest.mark.slow
def test_report_shows_every_part_of_both_models(shapes):
    page, words = text_of(shapes.report)
    for heading in ("Gallery", "Norms", "Outliers", "Registers", "Probes", "Comparison with ground truth"):
        assert f"<h2>{heading}</h2>" in page
    assert "Test-time registers" in words and "Pooling probes" in words and "Local probes" in words
    assert "tensor: residual stream" in words and "model: mambar and vim" in words and "seed: 0" in words
    assert "random weights" not in words.lower()
    assert "<script" not in page and "http://" not in page and "https://" not in page


@pytest.mark.slow
def test_every_figure_is_there_as_png_and_svg(shapes):
    figures = {path.name for path in (shapes.report.parent / "figures").iterdir()}
    names = {name.rpartition(".")[0] for name in figures}
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    sheets = {"norms-by-layer", "norm-distributions", "outliers", "register-similarity", "probes", "ground-truth"}
    assert sheets | {"gallery-00", "registers-00-a"} <= names


@pytest.mark.slow
def test_numbers_are_strict_json_and_equal_the_arrays(shapes):
    folder = shapes.report.parent
    numbers = json.loads((folder / "numbers.json").read_text("utf-8"), parse_constant=pytest.fail)
    arrays = np.load(folder / "arrays.npz", allow_pickle=False)
    assert list(numbers["models"]) == list(arrays["models"]) == ["mambar", "vim"]
    assert arrays["model0_norm_maps"].shape == (3, 24, 4, 4) and arrays["model1_gallery_norms"].shape == (3, 1, 4, 4)
    for place, name in enumerate(numbers["models"]):
        found = numbers["models"][name]
        maps = arrays[f"model{place}_norm_maps"]
        assert [layer["maximum"] for layer in found["norms"]] == pytest.approx(maps.max(axis=(1, 2, 3)).tolist())
        assert found["outliers"][2]["layers"][0]["share"] == pytest.approx(0.05, abs=0.01)
    assert numbers["format_version"] == 2 and numbers["options"]["gallery"] == 1


@pytest.mark.slow
def test_planted_outliers_are_found_and_moved(shapes):
    vim = shapes.analysis.results["vim"]
    trained, moved = vim.added[0], vim.added[-1]
    assert trained.name == "as trained" and "channels moved" in moved.name
    assert moved.maximum < trained.maximum
    assert np.isfinite(trained.top1) and trained.num_images == 24


@pytest.mark.slow
def test_random_weights_are_named_in_the_report(tmp_path):
    options = AnalysisOptions(gallery=1, num_images=2, img_size=64, test_time_registers=0)
    files = []
    for name in ("<img src=x onerror=alert(1)>.png", "b.png"):
        files.append(tmp_path / name)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(files[-1])
    result = analyze("vim_tiny_patch16_224", images=files, out=tmp_path / "out", options=options)
    page, words = text_of(result.report)
    assert "Random weights, never trained: vim_tiny_patch16_224" in words
    assert "random weights" in words.split("seed: 0", 1)[1]
    assert "<img src=x" not in page and "&lt;img src=x onerror" in page
    assert "Not run for vim_tiny_patch16_224: the images have no classes" in words
    assert "the images have no masks" in words and result.analysis.results["vim_tiny_patch16_224"].probes == []


def test_a_directory_that_holds_something_is_left_alone(tmp_path, runs):
    (tmp_path / "mine.txt").write_text("keep", "utf-8")
    with pytest.raises(InputError, match="is not an empty directory"):
        analyze(runs / "vim", out=tmp_path, options=OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_unreadable_requests_write_nothing(tmp_path, runs):
    out = tmp_path / "out"
    for wrong in ({"model": "mambar_tinny_patch16_224"}, {"model": runs / "vim", "images": [tmp_path / "no.png"]}):
        with pytest.raises(InputError):
            analyze(**wrong, out=out)
    assert not out.exists()


def test_subjects_by_name_file_and_timm(runs):
    by_file = open_model(runs / "vim" / "model.safetensors")
    assert by_file.classes == ("disc", "square", "triangle") and not by_file.random_weights
    first, second = (open_model("vim_tiny_patch16_224", img_size=32, seed=seed) for seed in (0, 0))
    image = torch.rand(1, 3, 32, 32)
    assert first.random_weights and torch.equal(first.model(image), second.model(image))
    timm = open_model("timm/deit_tiny_patch16_224", img_size=32)
    assert timm.grid == (2, 2) and timm.random_weights
    with pytest.raises(InputError, match="did you mean 'vim_tiny_patch16_224'"):
        open_model("vim_tiny_patch16_225")
    with pytest.raises(InputError, match="img_size=40 is not a multiple of the patch size of timm/deit_tiny_"):
        open_model("timm/deit_tiny_patch16_224", img_size=40)


def test_gray_models_read_rgb_images_and_rgb_models_read_gray(tmp_path):
    torch.manual_seed(0)
    grey = VisionMamba(VisionMambaConfig(img_size=16, patch_size=8, embed_dim=8, depth=1, in_chans=1, num_registers=1))
    save_model(tmp_path / "grey", grey, preprocessing=Preprocessing(img_size=16, mean=(0.5,), std=(0.5,)))
    analyzed = open_model(tmp_path / "grey")
    assert analyzed.preprocess(torch.zeros(3, 20, 20, dtype=torch.uint8)).shape == (1, 16, 16)
    color = open_model("vim_tiny_patch16_224", img_size=32)
    assert color.preprocess(torch.zeros(1, 40, 40, dtype=torch.uint8)).shape == (3, 32, 32)


def test_masks_are_cropped_like_images_without_new_values(runs):
    analyzed = open_model(runs / "vim")
    mask = torch.zeros(64, 96, dtype=torch.uint8)
    mask[:, 48:] = 7
    seen = analyzed.resize_mask(mask)
    assert seen.shape == (32, 32) and set(seen.unique().tolist()) == {0, 7}
    assert torch.equal(seen[:, :16].unique(), torch.tensor([0], dtype=torch.uint8))


def test_default_layers_are_the_papers():
    assert default_layers(24) == (7, 15, 19, 23) and default_layers(3) == (0, 1, 2) and default_layers(1) == (0,)


@without_shape_hook
@pytest.mark.parametrize(
    "wrong", [{"metric": "l1"}, {"tensor": "x"}, {"probes": ("svm",)}, {"gallery": 0}, {"colormap": "jet"}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        AnalysisOptions(**wrong)


@pytest.mark.slow
def test_nothing_is_written_outside(shapes):
    folder = Path(shapes.report).parent
    assert {path.name for path in folder.iterdir()} == {"report.html", "numbers.json", "arrays.npz", "figures"}


def test_the_old_name_of_the_colormap_is_accepted_with_a_warning():
    with pytest.warns(DeprecationWarning, match="colours= is now colormap="):
        assert AnalysisOptions(colours="magma").colormap == "magma"  # pyright: ignore[reportCallIssue]


def test_the_model_runs_once_on_each_batch(runs):
    """24 images in batches of 8, and the gallery; added registers need further passes and are skipped."""
    analyzed = replace(open_model(runs / "mambar"), random_weights=True)
    dataset = open_dataset("shapes", "val", **SHAPES)
    calls = []
    hook = analyzed.model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    result = analyze_model(analyzed, dataset, sample_gallery(dataset, 1, seed=0), OPTIONS)
    hook.remove()
    assert len(calls) == 3 + 1
    assert result.probes and result.local and result.ground_truth and result.map_ground_truth
    assert result.register_maps is not None and result.not_run == {"added registers": "the weights are random"}
