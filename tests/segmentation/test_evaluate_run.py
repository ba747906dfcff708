"""A finished segmenter is evaluated as it was trained, or as it is asked for."""

import pytest

from mambar.data.registry import open_dataset
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import DataError
from mambar.segmentation import Inference, Segmenter
from mambar.segmentation.evaluator import evaluate_run
from mambar.segmentation.files import save_segmenter

SCENES = {"img_size": 32, "num_images": 8, "val_limit": 4, "num_classes": 2}


@pytest.fixture
def run(tiny_mamba, tmp_path):
    scenes = open_dataset("shapes", "val", kind="segmentation", **SCENES)
    model = Segmenter(tiny_mamba, num_classes=3, channels=8)
    model.classes, model.palette = scenes.classes, scenes.palette
    model.preprocessing = Preprocessing(img_size=32)
    save_segmenter(tmp_path, model, name="tiny", inference=Inference(crop=32, stride=32), force=False)
    return tmp_path


def test_every_labelled_pixel_counts_once(run):
    result = evaluate_run(run, data="shapes", data_options=SCENES)
    assert result.pixels == 4 * 32 * 32
    assert list(result.per_class) == list(open_dataset("shapes", "val", kind="segmentation", **SCENES).classes)
    assert 0 <= result.miou <= 1 and result.confusion.sum(1).tolist()[0] > 0


@pytest.mark.slow
def test_windows_can_be_asked_for(run):
    settings = Inference(crop=16, stride=8, flip=True)
    other = evaluate_run(run, data="shapes", data_options=SCENES, inference=settings)
    trained = evaluate_run(run, data="shapes", data_options=SCENES)
    assert other.pixels == trained.pixels
    assert other.confusion.tolist() != trained.confusion.tolist()


def test_other_classes_are_refused(run):
    with pytest.raises(DataError, match="the model 3"):
        evaluate_run(run, data="shapes", data_options={**SCENES, "num_classes": 4})
