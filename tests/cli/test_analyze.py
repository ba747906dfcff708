"""`mambar analyze` with backbones from outside the package."""

import sys
from pathlib import Path

import pytest

BACKBONE = Path(__file__).parents[2] / "examples" / "extend" / "backbone.py"
FAST = ("--num-images", "2", "--gallery", "1", "--layers", "0", "--device", "cpu")


@pytest.fixture(autouse=True)
def own_registry():
    """Backbones that other tests registered are not seen here, and those of this file not elsewhere."""
    from mambar.models import BACKBONES

    before = dict(BACKBONES)
    BACKBONES.clear()
    yield
    sys.modules.pop("mambar_user_backbone", None)
    BACKBONES.clear()
    BACKBONES.update(before)


@pytest.mark.parametrize("place", [0, 3])
def test_a_registered_backbone_needs_no_run(mambar_command, tmp_path, place):
    command = ["analyze", "mlp_mixer", *FAST, "--out", tmp_path / "out"]
    assert mambar_command(*command)[0] == 2
    command[place:place] = ["--import", BACKBONE]
    code, out, err = mambar_command(*command)
    assert code == 0 and out.startswith(f"report: {tmp_path / 'out' / 'report.html'}"), err


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [("model=timm/vit_tiny_patch16_224", "img_size=16"), ("model=mlp_mixer", "config.patch_size=4")]
)
def test_a_run_of_another_backbone_is_used_by_every_command(mambar_command, picture, tmp_path, model):
    own, run = f"--import={BACKBONE}", tmp_path / "run"
    fields = ("epochs=1", "max_steps=1", "batch_size=4", "drop_path_rate=0", "data_options.limit=40")
    for command in (
        ("train", "digits", *model, *fields, "--out", run, "--num-workers", "0"),
        ("evaluate", run, "data_options.limit=40"),
        ("predict", run, picture),
        ("analyze", run, *FAST, "--out", tmp_path / "analysis"),
    ):
        code, out, err = mambar_command(*command, own, *(() if "--device" in command else ("--device", "cpu")))
        assert code == 0 and out, (command, err)
    code, _, err = mambar_command("predict", run, picture, "--import", tmp_path / "missing.py")
    assert code == 2 and "missing.py" in err


def test_a_segmenter_is_named_as_one(mambar_command, tmp_path):
    (tmp_path / "config.json").write_text('{"mambar": {"format_version": 1, "kind": "segmenter"}}', "utf-8")
    for verb in ("analyze", "info", "export"):
        code, _, err = mambar_command(verb, tmp_path)
        assert code == 2 and "is a segmenter, not a classifier; use `mambar segment`" in err
