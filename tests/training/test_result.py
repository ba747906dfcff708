"""Every number of a result names the step and the images that it is from."""

import json
import re

import pytest
from PIL import Image

from mambar.data import open_dataset
from mambar.data.shards.pack import pack_folder
from mambar.recipes.run import resume, run
from training import runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three evaluations, whose best weights are chosen, on data with a test split."""
    digits = {split: open_dataset("digits", split, limit=48) for split in ("train", "val")}
    data = {**digits, "test": open_dataset("digits", "val", limit=30)}
    recipe = runs.tiny(final_weights="best", data_options={}, ema_decay=None)
    out = tmp_path_factory.mktemp("result") / "run"
    return run(recipe, data=data, out=out, device="cpu", num_workers=0), data


def test_the_step_is_that_of_the_metrics(finished):
    result, _ = finished
    stored = json.loads((result.directory / "result.json").read_text("utf-8"))
    rows = [row for row in runs.read_rows(result.directory) if row["kind"] == "evaluation"]
    best = max(rows, key=lambda row: (row["top1"], -row["step"]))
    assert (stored["step"], stored["metrics"]["top1"]) == (best["step"], best["top1"])
    assert (stored["last_step"], stored["num_evaluations"], stored["num_val_images"]) == (9, 3, 48)
    assert stored["final_weights"] == "best"


def test_the_test_images_are_evaluated_once_with_the_final_weights(finished):
    result, _ = finished
    stored = json.loads((result.directory / "result.json").read_text("utf-8"))
    assert stored["num_test_images"] == 30
    correct = stored["test_metrics"]["top1"] * 30
    assert correct == pytest.approx(round(correct)) and result.test_metrics == stored["test_metrics"]


def test_the_report_and_the_result_say_it_in_words(finished):
    result, _ = finished
    assert re.search(r"step \d of 9, the best of 3 evaluations on 48 validation images", result.origin)
    page = (result.directory / "report.html").read_text("utf-8")
    assert result.origin in page and "Independent test: top1" in page and "on 30 images" in page


def test_a_finished_run_is_read_with_all_of_it(finished):
    result, data = finished
    again = resume(result.directory, data=data)
    assert again.already_finished and again.describe() == result.describe()


def test_the_last_weights_are_named_as_such(tmp_path):
    result = runs.here(runs.tiny(epochs=1), tmp_path / "run")
    assert result.origin == "step 3, the last one, on 48 validation images" and result.test_metrics is None


@pytest.mark.parametrize("form", ["tars", "hf"])
def test_the_test_split_of_stored_data_is_reported(tmp_path, form, need_package):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for number in range(2 * count):
            file = tmp_path / "folder" / split / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * number, 0, 90)).save(file)
    stored = tmp_path / "stored"
    if form == "tars":
        pack_folder(tmp_path / "folder", stored)
    else:
        need_package("datasets")
        import datasets

        datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder"), cache_dir=tmp_path).save_to_disk(stored)
    recipe = runs.tiny(data=str(stored), data_options={}, epochs=1, batch_size=8)
    result = run(recipe, out=tmp_path / "run", device="cpu", num_workers=0)
    assert "Independent test: top1" in result.describe() and "on 6 images" in result.describe()
