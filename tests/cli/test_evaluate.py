"""`mambar evaluate` tells a segmenter from a classifier, and each its options."""

import json

import pytest
from PIL import Image

from mambar.cli import main
from mambar.data.registry import open_dataset
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.hub.files import save_model
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.segmentation import Inference, Segmenter
from mambar.segmentation.files import save_segmenter

CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_registers": 2, "register_reduction": 2}
SCENES = {"img_size": 32, "num_images": 8, "num_classes": 2}
OPTIONS = [f"data_options.{name}={value}" for name, value in SCENES.items()]


def evaluate(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main.main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.fixture
def segmenter(tmp_path):
    scenes = open_dataset("shapes", "val", kind="segmentation", **SCENES)
    model = Segmenter(VisionMamba(VisionMambaConfig(**CONFIG, num_classes=0)), num_classes=3, channels=8)
    model.classes, model.palette = scenes.classes, scenes.palette
    model.preprocessing = Preprocessing(img_size=32)
    save_segmenter(tmp_path / "run", model, name="tiny", inference=Inference(crop=32, stride=32), force=False)
    return tmp_path / "run"


@pytest.mark.slow
def test_a_segmenter_gives_iou_of_every_class(segmenter, capsys):
    common = (segmenter, "--data=shapes", "data_options.val_limit=2", *OPTIONS, "--device=cpu")
    code, out, _ = evaluate(capsys, *common, "--json")
    found = json.loads(out)
    assert code == 0 and found["pixels"] == 2 * 32 * 32 and found["classes"][0] == "background"
    code, out, _ = evaluate(capsys, *common, "--crop=16", "--stride=16", "--scales=1,2")
    assert code == 0 and out.startswith("mIoU ") and "background" in out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("batch_size=2", "--batch-size is an option for classifiers"),
        ("scales=1,big", "must be numbers"),
        ("--stride=99", "stride=99 must be from 1 to crop=32"),
        ("data_options.num_clases=2", "num_clases"),
    ],
)
def test_bad_options_of_a_segmenter(segmenter, capsys, option, message):
    code, _, err = evaluate(capsys, segmenter, "--data=shapes", *OPTIONS, option, "--device=cpu")
    assert code == 2 and message in err


def test_a_classifier_takes_the_options_of_data(tmp_path, capsys):
    scenes = open_dataset("shapes", "val", kind="segmentation", **SCENES)
    names = scenes.classes[1:]
    model = VisionMamba(VisionMambaConfig(**CONFIG, num_classes=2))
    save_model(tmp_path / "run", model, name="tiny", classes=names, preprocessing=Preprocessing(img_size=32))
    code, out, _ = evaluate(capsys, tmp_path / "run", "--data=shapes", *OPTIONS, "--device=cpu", "--json")
    assert code == 0 and set(json.loads(out)["per_class"]) == set(names)
    code, _, err = evaluate(capsys, tmp_path / "run", "--data=shapes", "--flip", "--device=cpu")
    assert code == 2 and "--flip is an option for segmenters" in err


def folder(root, *classes):
    """A folder of images, two a class."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (32, 32), (90 * number, 60, 0)).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("inside", ["", "val", "test", "Validation"])
def test_a_given_folder_is_evaluated_whole(tmp_path, capsys, inside):
    names = ("ant", "bee")
    save_model(tmp_path / "run", VisionMamba(VisionMambaConfig(**CONFIG, num_classes=2)), classes=names)
    data = folder(tmp_path / "given", *(f"{inside}/{name}" if inside else name for name in names))
    common = (tmp_path / "run", f"--data={data}", "--device=cpu")
    assert "(4 images)" in evaluate(capsys, *common)[1]
    assert ("(4 images)" if inside else "(2 images)") in evaluate(capsys, *common, "--split=val")[1]
    # The split with validation images is used where there are both.
    folder(data, *(f"train/{name}" for name in names)) if inside else None
    assert "(4 images)" in evaluate(capsys, *common)[1]


def test_evaluating_training_images_warns(tmp_path, capsys, caplog):
    data = folder(tmp_path / "given", "ant", "bee")
    fields = ("model=mambar_tiny_patch16_224", "img_size=16", "config.depth=1", "config.embed_dim=16", "max_steps=1")
    with pytest.raises(SystemExit):
        main.main(
            ["train", "folder", f"data={data}", *fields, "batch_size=2", f"--out={tmp_path / 'run'}", "--device=cpu"]
        )
    caplog.clear()
    assert "(2 images)" in evaluate(capsys, tmp_path / "run", "--device=cpu")[1] and not caplog.messages
    assert "(4 images)" in evaluate(capsys, tmp_path / "run", f"--data={data}", "--device=cpu")[1]
    assert "--split val evaluates its validation images only" in caplog.text
