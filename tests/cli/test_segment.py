"""`mambar segment` on several images: names of the output, and an unreadable image among them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mambar.cli.images import output_names
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import InputError
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.segmentation import Inference, Segmenter, save_segmenter

CONFIG = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_registers": 2}


def test_every_readable_image_is_segmented(mambar_command, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = Segmenter(VisionMamba(VisionMambaConfig(**CONFIG, num_classes=0)), num_classes=2, channels=8)
    model.classes, model.palette, model.preprocessing = ("a", "b"), ((0, 0, 0), (9, 9, 9)), Preprocessing(img_size=16)
    save_segmenter(Path("run"), model, name=None, inference=Inference(crop=16, stride=16), force=False)
    for name in ("in/x.png", "in/sub/x.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (200, 30, 90)).save(name)
    Path("in/bad.png").write_bytes(b"x")
    code, out, err = mambar_command("segment", "run", "in", "--json", "--max-pixels=200")
    assert code == 2 and "bad.png" in caplog.text
    # The JPEG is reduced while it is decoded, the PNG is refused.
    assert (
        "in/sub/x.jpg: 24x16 pixels are segmented at 12x8" in caplog.text and "24x16 pixels; at most 200" in caplog.text
    )
    assert "2 of 3 images could not be read" in err
    found = json.loads(out)
    assert found["in/sub/x.jpg"]["width"] == 12 and found["in/sub/x.jpg"]["files"][0] == "segmented/sub/x.overlay.png"
    assert "error" in found["in/bad.png"] and Path("segmented/sub/x.index.png").is_file()


def test_output_names_are_those_of_the_images_with_folders_where_they_repeat():
    assert output_names([Path("a/x.png"), Path("b/y.png")]) == {Path("a/x.png"): Path("x"), Path("b/y.png"): Path("y")}
    assert list(output_names([Path("a/x.png"), Path("b/x.png")]).values()) == [Path("a/x"), Path("b/x")]
    with pytest.raises(InputError, match="two images are named x; process them separately"):
        output_names([Path("a/x.png"), Path("a/x.jpg")])
