"""P16: what a user can get wrong ends with exit code 2, one line that names it, and no trace on the disk."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mambar
from mambar.cli.main import main
from mambar.data.transforms.classification import Preprocessing
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.recipes import get_recipe

pytestmark = pytest.mark.rel

# A line that fits on a screen; only longer lists of keys (tensors that do not fit) may pass it.
LONGEST = 200


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with a small model and folders of images that are each wrong in one way."""
    place = tmp_path_factory.mktemp("workplace")

    def image(name: str) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / name)

    torch.manual_seed(0)
    config = VisionMambaConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_registers=2, num_classes=3)
    preprocessing = Preprocessing(img_size=16)
    mambar.save_model(place / "model", VisionMamba(config), classes=["a", "b", "c"], preprocessing=preprocessing)
    for name in ("two/a", "two/b", "split/train/a", "split/train/b"):
        for number in range(4):
            image(f"{name}/{number}.png")
    for name in (
        "split/val/a/0",
        "split/val/c/0",
        "hollow/b/0",
        "loose/0",
        "lonely/a/0",
        "lonely/b/0",
        "onlyval/val/a/0",
    ):
        image(f"{name}.png")
    image("ok.png")
    (place / "hollow" / "a").mkdir()
    (place / "empty").mkdir()
    (place / "text.txt").write_text("hello", "utf-8")
    (place / "notes.png").write_text("hello", "utf-8")
    complete = {**json.loads(get_recipe("digits").to_json()), "format_version": 1}
    recipes = {
        "broken": "{",
        "list": "[]",
        "deep": "[" * 100_000,
        "newer": '{"format_version": 99}',
        "yaml": "!!python/object/apply:os.system ['touch executed']",
        "aliases": "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]",
        "unknown": json.dumps(
            {"format_version": 1, "name": "x", "model": "y", "stages": [], "command": "touch executed"}
        ),
        "environment": json.dumps({**complete, "name": "$HOME", "model": "${HOME}", "stages": []}),
        "nan": '{"format_version": 1, "name": "x", "model": "y", "stages": [{"lr": NaN}]}',
        "imports": json.dumps({**complete, "task": "os:system"}),
    }
    for name, text in recipes.items():
        (place / "resumed" / name).mkdir(parents=True)
        (place / "resumed" / name / "recipe.json").write_text(text, "utf-8")
    return place


# Command → words that its line must hold.
CASES = {
    "train": "recipe's name",
    "train digit": "did you mean 'digits'",
    "train zzz": "mambar recipe --list",
    "train digits epoch=2": "did you mean 'epochs'",
    "train digits zzz=2": "mambar recipe digits",
    "train digits epochs": "NAME=VALUE",
    "train digits =3": "NAME=VALUE",
    "train digits epochs=two": "epochs",
    "train digits epochs=-1": "epochs",
    "train digits epochs=nan": "epochs",
    "train digits epochs=1e400": "epochs",
    "train digits lr=nan": "lr",
    "train digits lr=inf": "lr",
    "train digits lr=-1": "lr",
    "train digits batch_size=0": "batch_size",
    "train digits batch_size=1.5": "batch_size",
    "train digits img_size=0": "img_size",
    "train digits img_size=100000000": "img_size",
    "train digits config.depth=0": "depth",
    "train digits config.embed_dim=-8": "dim",
    "train digits config.placement=nowhere": "placement",
    "train digits config.head=cls": "head",
    "train digits model=resnet50": "resnet50",
    "train digits model=../../etc/passwd": "../../etc/passwd",
    "train digits precision=fp8": "precision",
    "train digits --device=tpu": "device",
    "train digits seed=x": "seed",
    "train digits seed=-1": "seed",
    "train digits --num-workers=-2": "num-workers",
    "train digits --num-workers=many": "num-workers",
    "train digits stages.7.epochs=3": "stages.7.epochs",
    "train digits stages.x.epochs=3": "stages.x.epochs",
    "train digits track=nothing": "track",
    "train digits data=nowhere": "nowhere",
    "train digits --out=two": "two",
    "train digits --out=text.txt": "text.txt",
    "train digits --out=text.txt/x": "text.txt/x",
    "train digits --processes 0": "--processes",
    "train digits --processes x": "--processes",
    "train folder": "data",
    "train folder data=": "data= is empty",
    "train digits --out=": "--out is empty",  # is empty",
    "train folder data=nowhere": "nowhere",
    "train folder data=text.txt": "text.txt",
    "train folder data=empty": "no class sub-folders",
    "train folder data=hollow": "'a'",
    "train folder data=loose": "its own sub-folder",
    "train folder data=lonely": "too few to split",
    "train folder data=split": "only in",
    "train folder data=onlyval": "no train/",
    "train folder data=https://example.com/x.zip": "https:",
    "train finetune data=two": "needs start_from",
    "train finetune_384 data=two": "needs start_from",
    "train finetune data=two start_from=nowhere": "nowhere",
    "train --resume nowhere": "nowhere",
    "train --resume two": "recipe.json",
    "train digits --resume model": "'digits'",
    "train --resume resumed/broken": "resumed/broken/recipe.json",
    "train --resume resumed/list": "resumed/list/recipe.json",
    "train --resume resumed/deep": "resumed/deep/recipe.json",
    "train --resume resumed/newer": "format_version 99",
    "train --resume resumed/yaml": "resumed/yaml/recipe.json",
    "train --resume resumed/aliases": "resumed/aliases/recipe.json",
    "train --resume resumed/unknown": "'command'",
    "train --resume resumed/environment": "stages",
    "train --resume resumed/nan": "lr",
    "train --resume resumed/imports": "task",
    "evaluate": "'RUN'",
    "evaluate nowhere": "nowhere",
    "evaluate model": "recipe.json",
    "evaluate model --data=two": "2 classes",
    "evaluate model --data=two --split=test": "split",
    "evaluate model --data=digits": "10 classes",
    "evaluate model --data=digits --batch-size=0": "batch-size",
    "evaluate model --data=digits --crop-pct=2": "3 (a, b, c",
    "evaluate text.txt": "text.txt",
    "evaluate two": "two",
    "predict model": "IMAGE",
    "predict model nowhere.png": "nowhere.png",
    "predict model empty": "holds no image",
    "predict model notes.png": "notes.png",
    "predict model ok.png --top=0": "top",
    "predict model ok.png --tpo=3": "--tpo",
    "predict nowhere ok.png": "nowhere",
    "analyze nowhere": "nowhere",
    "analyze model --images=nowhere": "nowhere",
    "analyze model --layers=99 --out=new": "layers=99",
    "analyze model --layers=x --out=new": "layers",
    "analyze model --tensor=nothing --out=new": "tensor",
    "analyze model --out=two": "two",
    "analyze model pretrained=maybe": "pretrained",
    "analyze model --num-images=0 --out=new": "num-images",
    "analyze model --compare=nowhere --out=new": "nowhere",
    "info mambar_huge": "mambar_huge",
    "info mambar_base_patch16_224 --img-size=8": "img_size=8",
    "info mambar_base_patch16_224 --img-size=1x2x3": "img-size",
    "recipe zzz": "mambar recipe --list",
    "recipe digits epochs=x": "epochs",
    "convert nowhere out": "nowhere",
    "convert text.txt out": "text.txt",
    "convert --official model out.pth": ".safetensors",
    "pack nowhere out": "nowhere",
    "pack empty out": "empty",
    "pack two model": "model",
    "pack two out --shard-megabytes=0": "shard-megabytes",
    "segment nowhere ok.png": "nowhere",
    "segment model ok.png": "model",
    "segment model ok.png empty/*.png": "holds no image",
    "reproduce nothing": "nothing",
    "reproduce table_costs --budget=huge": "budget",
    "reproduce table_costs --seeds=x": "seeds",
    "bench nothing": "nothing",
    "bench ops --dtype=float8": "dtype",
    "bench model --model=nothing": "nothing",
    "demo epochs=x": "epochs",
    "demo --sed=1": "--sed",
    "doctor nonsense": "nonsense",
    "nonsense": "nonsense",
    "--nonsense": "--nonsense",
}


def run(command: str) -> tuple[object, str, str]:
    """Exit code, stdout and stderr of a command line."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.raises(SystemExit) as stop:
        main(command.split())
    return stop.value.code, out.getvalue(), error.getvalue()


def everything(place: Path) -> dict[Path, bytes | None]:
    """Each file's bytes; an empty `runs`, the place of all runs, is no trace of one."""
    return {path: path.read_bytes() if path.is_file() else None for path in place.rglob("*") if path.name != "runs"}


# The hook that checks types under `make shapes` speaks before the check of this one's own.
HOOKED = {"reproduce table_costs --budget=huge"}


@pytest.mark.parametrize(
    "command",
    [pytest.param(case, marks=pytest.mark.wrong_shapes) if case in HOOKED else case for case in CASES],
)
def test_bad_input_is_one_line_and_leaves_no_trace(workplace, monkeypatch, command):
    monkeypatch.chdir(workplace)
    before = everything(workplace)
    code, out, error = run(command)
    assert code == 2, error
    assert out == "" and error.count("\n") == 1 and "Traceback" not in error
    assert CASES[command] in error and len(error) <= LONGEST
    assert everything(workplace) == before


def test_a_right_command_is_not_refused(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    code, out, error = run("predict model ok.png top=1")
    assert code == 0 and "ok.png" in out and error == ""
