"""A run whose held-out images are partly damaged ends with its report, can be resumed, and can be analyzed."""

import pytest

from data.segmented import image, png, values, write
from mambar.analysis import AnalysisOptions, analyze
from mambar.recipes.run import resume, run
from mambar.training.recipe import Recipe, Stage

MODEL = {"embed_dim": 32, "depth": 2, "patch_size": 8, "num_registers": 4, "register_reduction": 2, "d_state": 4}
STAGE = Stage(img_size=16, epochs=1, batch_size=4, lr=1e-3, decay_groups="corrected")
DAMAGED = b"\xff\xd8\xff\xe0 no image"


def tiny(name, data, task="classification"):
    return Recipe(
        name=name,
        task=task,
        # The default size of evaluation is that of ADE20K's photographs.
        task_options={"resize": None, "eval_crop": 16, "eval_stride": 8} if task == "segmentation" else {},
        model="mambar_tiny_patch16_224",
        config=MODEL,
        data=str(data),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        stages=(STAGE,),
        precision="fp32",
    )


@pytest.fixture
def photographs(tmp_path):
    """Two classes; the first of four validation images of a class is damaged, and one training image."""
    files = {}
    for split, count in (("train", 6), ("val", 4)):
        for kind in ("ant", "bee"):
            files |= {f"{split}/{kind}/{number}.jpg": image(number, (16, 20)) for number in range(count)}
    return write(tmp_path / "photographs", {**files, "val/ant/0.jpg": DAMAGED, "train/bee/3.jpg": DAMAGED})


@pytest.fixture
def scenes(tmp_path):
    """Images and masks; one validation image is damaged, and one training mask."""
    files: dict[str, bytes | str] = {"classes.txt": "sky\nroad\ntree\n"}
    for split, count in (("train", 6), ("val", 4)):
        files |= {f"images/{split}/{number}.jpg": image(number, (16, 16)) for number in range(count)}
        files |= {f"masks/{split}/{number}.png": png(values(number, (16, 16))) for number in range(count)}
    return write(tmp_path / "scenes", {**files, "images/val/0.jpg": DAMAGED, "masks/train/2.png": DAMAGED})


def test_a_classifier(photographs, tmp_path, caplog):
    out = tmp_path / "run"
    result = run(tiny("photographs", photographs), out=out, device="cpu", num_workers=0)
    assert (out / "report.html").is_file() and "ant/0.jpg" in caplog.text
    for file in ("report.html", "result.json"):
        (out / file).unlink()
    assert resume(out, device="cpu", num_workers=0).metrics == result.metrics
    assert (out / "report.html").is_file()
    options = AnalysisOptions(gallery=8, probes=(), test_time_registers=0)
    assert analyze(out, data=photographs, out=tmp_path / "analysis", options=options).report.is_file()


def test_a_segmenter(scenes, tmp_path, caplog):
    out = tmp_path / "run"
    result = run(tiny("scenes", scenes, "segmentation"), out=out, device="cpu", num_workers=0)
    assert (out / "report.html").is_file() and "images/val/0.jpg" in caplog.text
    for file in ("report.html", "result.json"):
        (out / file).unlink()
    assert resume(out, device="cpu", num_workers=0).metrics == result.metrics
    assert (out / "report.html").is_file()
