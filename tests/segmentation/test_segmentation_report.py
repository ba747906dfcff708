"""The report of a segmentation run: what was measured stands in it, sorted, and names stay text."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from mambar.analysis import write_run_report
from mambar.data.registry import open_dataset
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.data.transforms.segmentation import MaskChannelDataset
from mambar.evaluation.segmentation import compute_metrics, count_pixels, image_iou
from mambar.segmentation import Inference, Segmenter
from mambar.segmentation.inference import predict
from mambar.segmentation.segmentation_report import contents
from mambar.training.metrics_log import read_metrics

NAMES = ("plain", "<script>alert(1)</script>", "disc")


@pytest.fixture
def run(tiny_mamba, tmp_path):
    """(model, validation set of six masked images, inference, measured): what a finished run hands to its report."""
    root, draw = tmp_path / "data", np.random.default_rng(0)
    for number in range(6):
        for kind, side in (("images", (32, 32, 3)), ("annotations", (32, 32))):
            (root / kind / "validation").mkdir(parents=True, exist_ok=True)
            high = 256 if kind == "images" else len(NAMES)
            values = draw.integers(0, high, side).astype(np.uint8)
            Image.fromarray(values).save(root / kind / "validation" / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    val = MaskChannelDataset(open_dataset(root, "val", kind="segmentation"))
    model = Segmenter(tiny_mamba, num_classes=len(NAMES), channels=8).eval()
    model.classes, model.palette = val.classes, val.palette
    model.preprocessing = Preprocessing(img_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    inference = Inference(crop=32, stride=32)
    counted = None
    for index in range(len(val)):
        pixels = val[index].image
        labels, _ = predict(model, pixels[:3], inference, preprocessing=model.preprocessing)
        each = count_pixels(labels, pixels[3], len(NAMES))
        counted = each if counted is None else counted + each
    return model, val, inference, compute_metrics(counted, val.classes)


def written(run, out, *rows):
    model, val, inference, result = run
    out.mkdir()
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    shown = contents(model, inference, result=result, val_set=val)
    metrics = {"scenes": read_metrics(out / "metrics.jsonl")}
    write_run_report(out / "report.html", title="scenes", recipe={}, metrics=metrics, **shown)
    return (out / "report.html").read_text("utf-8")


def test_what_was_measured_stands_in_it(run, tmp_path):
    page = written(run, tmp_path / "run", {"format_version": 1, "kind": "training", "step": 1, "loss": 1.25})
    result = run[-1]
    assert f"{result.miou:.2%}" in page and f"{result.boundary_f:.2%}" in page
    rows = re.findall(r"<tr>(.*?)</tr>", page.split("<h2>Classes</h2>")[1].split("<h2>")[0])
    for row, name in zip(rows[1:], result.classes, strict=True):
        assert f"{result.per_class[name]:.2%}" in row
    shares = 100 * result.confusion / result.confusion.sum(1, keepdims=True)
    matrix = re.search(r'<table class="matrix[^"]*">(.*?)</table>', page).group(1)
    assert re.findall(r"<td[^>]*>([^<]*)</td>", matrix) == [f"{share:.0f}" for share in shares.flatten()]
    assert "No numbers were logged yet." not in page
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_images_are_sorted_by_their_own_miou(run, tmp_path):
    model, val, inference, _ = run
    model.train()
    page = written(run, tmp_path / "run")
    assert model.training
    model.eval()
    found = []
    for index in range(len(val)):
        pixels = val[index].image
        labels, _ = predict(model, pixels[:3], inference, preprocessing=model.preprocessing)
        found.append(image_iou(labels, pixels[3], len(NAMES)))
    found.sort()
    shown = [f"{100 * iou:.1f}" for iou in (*found[:3], *found[::-1][:3])]
    assert re.findall(r"<b>mIoU ([0-9.]+)%</b>", page) == shown


def test_names_stay_text(run, tmp_path):
    page = written(run, tmp_path / "run")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_a_run_without_numbers_says_so(run, tmp_path):
    assert "No numbers were logged yet." in written(run, tmp_path / "run")
