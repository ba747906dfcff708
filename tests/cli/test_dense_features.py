"""Segmentation protocols on frozen tokens of a trained run, by name and with two processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mambar.errors import DataError
from mambar.recipes.dense_features import evaluate_dense
from training import runs

SCENES = ("--data", "shapes", "data_options.num_images=12", "data_options.num_classes=2", "--img-size", "24")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("dense") / "run"
    runs.here(runs.tiny(epochs=1), out)
    return out


def test_the_command_prints_a_table_and_writes_a_picture(run, mambar_command, tmp_path):
    out = tmp_path / "out"
    protocols = ("--protocol", "segmentation_knn,segmentation_linear", "--device", "cpu")
    code, text, error = mambar_command("evaluate", run, *protocols, *SCENES, "--out", out)
    assert code == 0, error
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["protocol", "setting", "mIoU"]
    assert lines[1].split()[:2] == ["segmentation_knn", "k=30"]
    assert lines[3] == "12 images of 24x24 pixels, fitted on 12"
    assert (out / "segmentation.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "segmentation.json").read_text("utf-8"))
    assert [score["protocol"] for score in found["scores"]] == ["segmentation_knn", "segmentation_linear"]
    assert all(0 < score["miou_interval"][0] <= score["miou"] for score in found["scores"])


def test_a_model_without_registers_and_masks_from_a_folder(tmp_path):
    from PIL import Image

    drawn = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for kind, shape in (("images", (40, 56, 3)), ("masks", (40, 56))):
            (tmp_path / kind / split).mkdir(parents=True)
            for number in range(count):
                pixels = drawn.integers(0, 256 if kind == "images" else 2, shape).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / kind / split / f"{number}.png")
    (tmp_path / "classes.txt").write_text("background\nobject\n", "utf-8")
    result = evaluate_dense(
        "timm/vit_tiny_patch16_224", data=str(tmp_path), img_size=32, protocols=["segmentation_knn"]
    )
    (score,) = result.scores
    assert result.classes == ("background", "object") and score.count == 2 and result.num_train == 6
    assert score.result.pixels == 2 * 32 * 32 and result.picture().shape == (3 * 34, 2 * 34, 3)


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_leave_no_features(run, tmp_path):
    arguments = ("evaluate", str(run), "--protocol", "segmentation_knn", "--json", "--device", "cpu", *SCENES)
    command = [sys.executable, "-m", "mambar", *arguments, "--batch-size", "4", "--processes", "2"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    options = {"num_images": 12, "num_classes": 2}
    expected = evaluate_dense(run, data="shapes", data_options=options, img_size=24, batch_size=4)
    assert json.loads(done.stdout) == json.loads(json.dumps(expected.to_dict())) and expected.scores[0].count == 12
    assert not list(tmp_path.glob("mambar-features-*"))


def test_options_without_effect_and_wrong_names_are_refused_in_one_line(run, mambar_command):
    for given, message in (
        (("--protocol", "segmentation_knn", "--features", "avg"), "--features has no effect with protocols that use"),
        (("--protocol", "segmentation_kn"), "did you mean 'segmentation_knn'"),
        (("--protocol", "knn,segmentation_knn"), "--protocol names protocols for images and for masks"),
        (("--protocol", "knn", "--out", "x"), "--out needs --corruptions or a segmentation protocol"),
        (("--protocol", ","), "protocol is empty; choose one or more of knn"),
        (("--img-size", "32"), "--img-size needs --protocol"),
    ):
        code, _, error = mambar_command("evaluate", run, *given)
        assert code == 2 and message in error and error.count("\n") == 1, error
    with pytest.raises(DataError, match="digits"):
        evaluate_dense(run)
