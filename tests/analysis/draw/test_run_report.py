import json
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from mambar.analysis import ExamplePrediction, FigureLabel, NormPanel, compare_norms, write_run_report


def write(path, name="plain", **changes):
    rng = np.random.default_rng(0)
    label = FigureLabel(tensor="residual", model=name, data=name)
    panel = NormPanel(
        image=rng.integers(0, 255, (3, 8, 8), dtype=np.uint8),
        maps={name: rng.random((4, 4), dtype=np.float32), "other": rng.random((4, 4), dtype=np.float32)},
        caption=name,
        label=label,
    )
    given = {
        "title": name,
        "introduction": name,
        "recipe": {"name": name, name: [name, name]},
        "metrics": {name: [{"step": s, "loss": 1 / (s + 1), "top1": 0.5} for s in range(5)]},
        "model": name,
        "classes": [name, "b"],
        "confusion": np.array([[3, 1], [0, 2]]),
        "predictions": [
            ExamplePrediction(image=np.zeros((1, 8, 8), np.uint8), true=name, predicted="b", probability=0.5),
            ExamplePrediction(image=np.zeros((3, 200, 100), np.uint8), true=name, predicted=name, probability=1.0),
        ],
        "norm_panels": {name: [panel]},
        "summary": {name: name},
    }
    return write_run_report(path / "report.html", **(given | changes)).read_text("utf-8")


def elements(page):
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, tuple(name for name, _ in attrs)))
    parser.feed(page)
    return found


@pytest.mark.rel
def test_hostile_names_stay_text(tmp_path, hostile):
    # A one-line legend or a short class name changes nothing in the structure, so the page is the plain one.
    assert elements(write(tmp_path, hostile + "....", metrics={})) == elements(write(tmp_path, metrics={}))


@pytest.mark.parametrize("name", ["$x^2$ \\frac{", "<b>&\"'", "\x1b[31m\ud800 猫"])
def test_hostile_names_in_charts_are_drawn_as_text(tmp_path, name):
    assert "image/svg+xml" in write(tmp_path, name)


def test_report_has_every_part_and_curves_beside_it(tmp_path):
    page = write(tmp_path)
    for heading in (
        "Curves",
        "Confusion matrix",
        "Example predictions",
        "Token norms in the last layer",
        "Recipe",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "tensor: residual stream" in page and "plain: 5 of 6 validation images correct (83.33%)" in page
    assert "plain: 1 of 1 misclassified validation images, and 1 correct ones of low probability" in page


def test_parts_that_were_not_given_are_left_out(tmp_path):
    page = write(tmp_path, metrics={}, confusion=None, predictions=(), norm_panels=None, summary=None)
    assert "<h2>Confusion matrix</h2>" not in page and "No numbers were logged yet." in page


def test_same_numbers_give_the_same_bytes(tmp_path):
    first = write(tmp_path), (tmp_path / "curves.png").read_bytes()
    assert (write(tmp_path), (tmp_path / "curves.png").read_bytes()) == first


def test_environment_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    page = write(tmp_path, recipe={"data": "https://user:planted-secret@host/data"})
    assert "planted-secret" not in page
    assert b"planted-secret" not in (tmp_path / "curves.png").read_bytes()


def test_compare_norms_fills_the_rows(fake_model):
    images = torch.ones(2, 3, 4, 6)
    rows = compare_norms({"a": fake_model, "b": fake_model}, images, captions=["x", "y"], layer=-1)
    assert [row.caption for row in rows] == ["x", "y"]
    assert rows[0].maps["a"].shape == (2, 3)
    assert np.allclose(rows[1].maps["b"], 15.0)
    assert rows[0].label.tensor == "residual" and rows[0].label.layer == "2 of 0–2, last"
    json.dumps(asdict(rows[0].label))
