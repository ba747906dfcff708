"""One image in, labels and files out."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import ImageError, InputError
from mambar.segmentation import Inference, Segmenter, segment


@pytest.fixture
def model(backbone):
    model = Segmenter(backbone, num_classes=3, channels=8)
    model.classes, model.palette = ("sky", "road", "tree"), ((0, 0, 255), (90, 90, 90), (0, 128, 0))
    model.preprocessing = Preprocessing(img_size=32)
    return model


def picture(height=40, width=70):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_result(model):
    model.train()
    found = segment(model, picture())
    assert model.training
    assert found.labels.shape == found.confidence.shape == (40, 70)
    assert sum(found.areas.values()) == pytest.approx(1.0)
    shares = list(found.areas.values())
    assert shares == sorted(shares, reverse=True)
    again = segment(model, picture(), inference=Inference(crop=32, stride=21))
    assert np.array_equal(found.labels, again.labels)


def test_a_file_and_its_bytes(model, tmp_path):
    stream = io.BytesIO()
    Image.fromarray(picture().permute(1, 2, 0).numpy()).save(stream, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(stream.getvalue())
    from_path, from_bytes = segment(model, path), segment(model, stream.getvalue(), name="b")
    assert np.array_equal(from_path.labels, from_bytes.labels)
    assert from_path.name == str(path) and from_bytes.name == "b"
    with pytest.raises(ImageError):
        segment(model, tmp_path / "none.png")


def test_files(model, tmp_path):
    found = segment(model, picture())
    paths = found.save(tmp_path / "out", "a")
    assert [path.name for path in paths] == ["a.overlay.png", "a.index.png", "a.json"]
    with Image.open(paths[1]) as index:
        assert np.array_equal(np.asarray(index), found.labels)
    with Image.open(paths[0]) as overlay:
        assert overlay.width % 70 == 0 and overlay.height > 40 * overlay.width // 70
    written = json.loads(paths[2].read_text("utf-8"))
    assert written["format_version"] == 2 and (written["width"], written["height"]) == (70, 40)
    assert sum(each["pixels"] for each in written["classes"]) == 2800
    first = written["classes"][0]
    assert first["label"] == model.classes.index(first["class"]) and 0 < first["confidence"] <= 1


@pytest.mark.rel
def test_nothing_is_overwritten(model, tmp_path):
    found = segment(model, picture())
    (tmp_path / "a.json").write_text("mine", "utf-8")
    with pytest.raises(InputError, match=r"already holds a.json"):
        found.save(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]
    found.save(tmp_path, "a", force=True)
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["width"] == 70


def test_model_without_names(backbone):
    found = segment(Segmenter(backbone, num_classes=2, channels=8), picture())
    assert set(found.areas) <= {"class 0", "class 1"}
