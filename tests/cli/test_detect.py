"""`mambar detect` and `mambar evaluate` of a detector on several images, and an unreadable image among them."""

import json
from pathlib import Path

import torch
from PIL import Image

import mambar
from mambar.data.detection.object_masks import decoded_masks
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.detection import Detector, save_detector

CONFIG = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_registers": 2, "num_classes": 0}
HEADS = {"num_classes": 2, "masks": True, "channels": 8, "head_dim": 8, "min_size": 16, "max_size": 32}


def test_every_readable_image_is_searched(mambar_command, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    backbone = mambar.create_model("mambar_tiny_patch16_224", **CONFIG)
    model = Detector(backbone, **HEADS, score_threshold=0.0, max_detections=3)
    model.classes, model.preprocessing = ("disc", "square"), Preprocessing(img_size=16)
    save_detector(Path("run"), model)
    for name in ("in/x.png", "in/sub/x.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (200, 30, 90)).save(name)
    Path("in/bad.png").write_bytes(b"x")
    code, out, err = mambar_command("detect", "run", "in", "--json", "--threshold=0", "--max-pixels=200")
    assert code == 2 and "2 of 3 images could not be read" in err and "bad.png" in caplog.text
    assert "in/sub/x.jpg: 24x16 pixels are searched at 12x8" in caplog.text
    found = json.loads(out)
    one = found["in/sub/x.jpg"]
    assert (one["width"], one["height"], len(one["objects"])) == (12, 8, 3) and "error" in found["in/bad.png"]
    for each in one["objects"]:
        x0, y0, x1, y1 = each["box"]
        assert 0 <= x0 <= x1 <= 12 and 0 <= y0 <= y1 <= 8 and each["class"] == ("disc", "square")[each["label"]]
        assert decoded_masks([each["segmentation"]], 8, 12).shape == (1, 8, 12)
    picture, content = map(Path, one["files"])
    # Enlarged, so that captions are legible.
    assert picture == Path("detected/sub/x.objects.png") and Image.open(picture).size == (324, 216)
    assert json.loads(content.read_text("utf-8")) == {key: value for key, value in one.items() if key != "files"}
    code, out, _ = mambar_command("detect", "run", "in/x.png", "--threshold=1", "--out=other")
    assert code == 0 and out.startswith("in/x.png: no object → other/x.objects.png")
    code, _, err = mambar_command("detect", "run", "in/x.png", "--out=other")
    assert code == 2 and "already holds x.objects.png" in err
    shapes = ("--data=shapes", "data_options.num_classes=2", "data_options.num_images=2", "data_options.img_size=16")
    code, out, _ = mambar_command("evaluate", "run", *shapes)
    assert code == 0 and out.startswith("box: AP ") and "\nmask: AP " in out and "objects in 2 images" in out
    one_class = mambar_command("evaluate", "run", *shapes, "data_options.num_images=1")[1]
    assert "disc" in one_class and "no objects" in one_class and "nan" not in one_class
    assert json.loads(mambar_command("evaluate", "run", *shapes, "--json")[1])["metrics"]["box_ap_large"] is None
    code, _, err = mambar_command("evaluate", "run", *shapes, "--crop=8")
    assert code == 2 and "--crop is an option for segmenters; run is a detector" in err
    code, _, err = mambar_command("segment", "run", "in/x.png")
    assert code == 2 and "run/config.json describes a detector (use `mambar detect`); train a segmenter" in err
    Path("in/half.png").write_bytes(Path("in/x.png").read_bytes()[:60])
    Path("none").mkdir()
    bad = {"in/half.png": "is truncated", "none": "IMAGE none holds no image", "in/y.png": "No such file or directory"}
    for name, message in bad.items():
        code, out, err = mambar_command("detect", "run", name)
        assert code == 2 and message in err and not out and err.count("\n") <= 1, err
    code, _, err = mambar_command("detect", "none", "in/x.png")
    assert code == 2 and "There is no file none/config.json" in err
    code, _, err = mambar_command("predict", "run", "in/x.png")
    assert code == 2 and "is a detector, not a classifier; use `mambar detect`" in err
