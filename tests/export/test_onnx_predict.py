"""`mambar predict MODEL.onnx IMAGE` needs no torch and predicts what the model predicts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mambar.data import EvalTransform, Preprocessing
from mambar.data.loading.images import read_image
from mambar.errors import CheckpointError, ImageError
from mambar.evaluation.prediction import predict_file
from mambar.export import export_onnx
from mambar.export.onnx_predict import OnnxModel
from mambar.image_file import open_image
from mambar.models import VisionMamba, VisionMambaConfig

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

# Nothing can be traced through the shape-checking hook (`make shapes`).
pytestmark = pytest.mark.skipif(bool(os.environ.get("MAMBAR_SHAPES")), reason="the shape-checking hook is in the way")

SMALL = VisionMambaConfig(
    img_size=(24, 32), patch_size=8, embed_dim=16, depth=1, num_registers=2, num_classes=4, d_state=4
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("predict")
    torch.manual_seed(2)
    model = VisionMamba(SMALL).eval()
    with torch.no_grad():
        model.head.classifier.weight.mul_(50)
    model.classes = ("ant", "bee", "<c>", "日本")
    model.preprocessing = Preprocessing(img_size=(24, 32), crop_pct=0.9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    export_onnx(model, directory / "model.onnx", check=False)
    return model, directory / "model.onnx"


def picture(path, mode="RGB", size=(61, 47), **options):
    draw = np.random.default_rng(0)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = draw.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, mode="P" if mode == "P" else None)
    if mode == "P":
        image.putpalette(draw.integers(0, 256, 768, dtype=np.uint8).tolist())
    (image.convert(mode) if mode == "CMYK" else image).save(path, **options)
    return path


PICTURES = {
    "rgb.png": {},
    "gray.png": {"mode": "L"},
    "transparent.png": {"mode": "RGBA"},
    "palette.png": {"mode": "P"},
    "photograph.jpg": {"quality": 90},
    "tall.webp": {"size": (30, 90), "lossless": True},
    "exact.png": {"size": (32, 24)},
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_input_is_the_models_to_the_bit(exported, tmp_path, name):
    model, path = exported
    file = picture(tmp_path / name, **PICTURES[name])
    expected = EvalTransform(preprocessing=model.preprocessing)(read_image(file))
    assert np.array_equal(OnnxModel(path).prepare(open_image(file)), expected.numpy())


def test_turned_photographs_stand_upright(exported, tmp_path):
    model, path = exported
    image = Image.open(picture(tmp_path / "a.png"))
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        image.save(tmp_path / "turned.jpg", exif=exif)
        expected = EvalTransform(preprocessing=model.preprocessing)(read_image(tmp_path / "turned.jpg"))
        assert np.array_equal(OnnxModel(path).prepare(open_image(tmp_path / "turned.jpg")), expected.numpy()), (
            orientation
        )


def test_guesses_are_the_models(exported, tmp_path):
    model, path = exported
    file = picture(tmp_path / "a.png")
    found, expected = OnnxModel(path).predict(file, top=3), predict_file(model, file, top=3)
    assert [guess.name for guess in found] == [guess.name for guess in expected]
    assert [guess.probability for guess in found] == pytest.approx([g.probability for g in expected], abs=1e-6)
    assert len(OnnxModel(path).predict(file, top=9)) == 4


def test_torch_is_not_imported(exported, tmp_path):
    _, path = exported
    file = picture(tmp_path / "a.png")
    probe = (
        "import sys; sys.modules['torch'] = None\n"
        "from mambar.export.onnx_predict import OnnxModel\n"
        f"print(OnnxModel({str(path)!r}).predict({str(file)!r})[0].name.encode())"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("b'")


@pytest.mark.parametrize(
    "content", [b"", b"PNG? no", b"\x89PNG\r\n\x1a\n" + bytes(30), b"GIF89a" + bytes(30)], ids=lambda c: repr(c[:8])
)
def test_what_is_no_image_is_named(exported, tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.png cannot be read"):
        OnnxModel(exported[1]).predict(tmp_path / "x.png")
    with pytest.raises(ImageError):
        OnnxModel(exported[1]).predict(tmp_path)


def test_a_bomb_is_refused_before_it_is_decoded(exported, tmp_path):
    Image.new("1", (8_000, 8_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="8000x8000 pixels"):
        OnnxModel(exported[1]).predict(tmp_path / "bomb.png")


def changed(path, target, **entries):
    """A copy of an exported file whose description has other entries; None takes the description away."""
    graph = onnx.load(str(path))
    content = json.loads(graph.metadata_props[0].value)
    preprocessing = {**content["preprocessing"], **entries.pop("preprocessing", {})}
    onnx.helper.set_model_props(
        graph,
        {} if entries.get("none") else {"mambar": json.dumps({**content, "preprocessing": preprocessing, **entries})},
    )
    target.write_bytes(graph.SerializeToString())
    return target


@pytest.mark.parametrize(
    "entries",
    [
        {"none": True},
        {"format_version": 3},
        {"classes": 3},
        {"preprocessing": {"img_size": 10**9}},
        {"preprocessing": {"img_size": [24]}},
        {"preprocessing": {"crop_pct": 1e-9}},
        {"preprocessing": {"crop_pct": float("nan")}},
        {"preprocessing": {"interpolation": "magic"}},
        {"preprocessing": {"std": [0, 0, 0]}},
        {"preprocessing": {"mean": []}},
    ],
    ids=str,
)
def test_a_hostile_description_is_refused(exported, tmp_path, entries):
    with pytest.raises(CheckpointError) as caught:
        OnnxModel(changed(exported[1], tmp_path / "x.onnx", **entries))
    assert "\n" not in str(caught.value)


def test_tensors_in_other_files_are_refused(exported, tmp_path):
    graph = onnx.load(str(exported[1]))
    onnx.save_model(graph, str(tmp_path / "x.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(CheckpointError, match="other files"):
        OnnxModel(tmp_path / "x.onnx")


def test_mutants_raise_one_error(exported, tmp_path):
    import hostile_loading

    data, refused = exported[1].read_bytes(), 0
    for seed in range(60):
        (tmp_path / "x.onnx").write_bytes(hostile_loading.mutate(data, seed))
        try:
            OnnxModel(tmp_path / "x.onnx")
        except CheckpointError:
            refused += 1
    assert refused > 20
    with pytest.raises(CheckpointError, match="cannot be read"):
        OnnxModel(tmp_path / "nowhere.onnx")
