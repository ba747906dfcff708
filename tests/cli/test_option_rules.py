"""An option that has no effect is refused with one line; every verb that reads images has --max-pixels."""

from pathlib import Path

import pytest
from PIL import Image

import mambar
from mambar.cli.main import _VERBS, app
from mambar.cli.option_rules import RULES
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.detection.detector import Detector, DetectorConfig
from mambar.detection.files import save_detector
from mambar.models import VisionMamba
from mambar.segmentation import Inference, Segmenter, save_segmenter

NAME = "mambar_tiny_patch16_224"
# Command → the beginning of its error.
WITHOUT_EFFECT = {
    "demo data=x": "data=SET: the demo has its own digits",
    "train digits --override lr": "--override needs --resume DIR",
    "train digits --accept-edited-recipe": "--accept-edited-recipe needs --resume DIR",
    "train digits --max-restarts 2": "--max-restarts needs --processes N of two or more",
    "train digits --processes 1 --max-restarts 2": "--max-restarts needs --processes N of two or more",
    "train --resume run --out x": "--resume run continues in that directory",
    "train --resume run --out x --processes 2": "--resume run continues in that directory",
    "train digits --max-pixels 9 data_options.max_pixels=8": "data_options.max_pixels=8 and --max-pixels 9",
    "evaluate run --features avg": "--features needs --protocol",
    "evaluate run --features-dir x": "--features-dir needs --protocol",
    "evaluate run --pretrained": "--pretrained needs --protocol",
    "evaluate run --protocol knn --pretrained": "--pretrained is for a model's name",
    "evaluate run --processes 2": "--processes needs --protocol",
    "evaluate run --severities 1": "--severities needs --corruptions",
    "evaluate run --out x": "--out needs --corruptions",
    "evaluate run --protocol knn --out x": "--out needs --corruptions",
    "evaluate run --protocol knn --severities 1": "--severities needs --corruptions",
    "evaluate run --protocol knn --corruptions fog": "--corruptions has no effect with --protocol",
    "evaluate run --protocol knn --crop-pct 1": "--crop-pct has no effect with --protocol",
    "evaluate run --protocol knn --crop 9": "--crop has no effect with --protocol",
    "evaluate run --protocol knn --stride 9": "--stride has no effect with --protocol",
    "evaluate run --protocol knn --scales 1": "--scales has no effect with --protocol",
    "evaluate run --protocol knn --no-flip": "--flip has no effect with --protocol",
    "evaluate run --corruptions fog --crop-pct 1": "--crop-pct has no effect with --corruptions",
    "evaluate run --data imagenet_variant --crop-pct 1": "--crop-pct has no effect with --data imagenet_variant",
    "evaluate run --data imagenet_variant --split val": "--split has no effect with --data imagenet_variant",
    "evaluate run --data digits --flip": "--flip is an option for segmenters",
    "evaluate run --max-pixels 9 data_options.max_pixels=8": "data_options.max_pixels=8 and --max-pixels 9",
    "predict run.onnx picture.png --device cuda": "--device cuda is not available for .onnx files",
    "analyze run data_options.limit=2": "NAME=VALUE needs --data SET",
    "analyze run --max-pixels 9": "--max-pixels needs --data or --images",
    "analyze run --folds 3 --probes=": "--folds needs --probes",
    "analyze run --pretrained": "--pretrained is for a model's name",
    "analyze run --compare run --pretrained": "--pretrained is for a model's name",
    "reproduce table_costs --list": "NAMES has no effect with --list",
    "reproduce --json": "--json needs the name of a table or figure",
    "reproduce --list --out x": "--out needs the name of a table or figure",
    "reproduce table_register_count --fit": "--fit needs --minutes",
    "reproduce table_costs --minutes 2": "--minutes is for tables that train many networks",
    "reproduce table_costs --jobs 2": "--jobs has no effect with table_costs",
    "reproduce table_costs data=x": "NAME=VALUE has no effect with table_costs",
    "reproduce figure_norms --other-seeds 2": "--other-seeds is for tables that train many networks",
    "reproduce table_register_count --more": "--more is for table_register_design",
    "reproduce table_artifacts --recipe digits": "--recipe has an effect with --budget small only",
    "reproduce table_artifacts --budget small --runs a,b": "--runs is for figures",
    "reproduce figure_norms --runs a,b": "--runs has an effect with --budget small only",
    "reproduce figure_norms --budget small --runs a,b --seeds 1": "--seeds has no effect with --runs",
    "reproduce table_ade20k --budget small --recipe digits": "--recipe has no effect with table_ade20k",
    "reproduce table_register_count --max-pixels 9": "--max-pixels needs data=PATH",
    "reproduce table_register_count seed=2": "seed=2: a table takes several seeds",
    "recipe digits --list": "RECIPE has no effect with --list",
    "recipe --json": "--json needs a recipe's name",
    "recipe digits --json --speed 9": "--speed has no effect with --json",
    "export run --format aoti --opset 20": "--opset is an option of --format onnx",
    "export run --format transformers --img-size 32": "--img-size is an option of traced formats",
    "export run --max-pixels 9": "--max-pixels needs --data SET",
    "export run --pretrained": "--pretrained is for a model's name",
    "export owner/name --pretrained": "--pretrained is for a model's name",
    "serve run --pretrained": "--pretrained is for a model's name",
    "bench ops --model x": "--model has no effect with bench ops",
    "bench ops --compile": "--compile has no effect with bench ops",
    "bench ops --img-size 32": "--img-size has no effect with bench ops",
    "bench model --seq-len 9": "--seq-len has no effect with bench model",
    "bench model --dtype float32": "--dtype has no effect with bench model",
    "convert run x.safetensors --official --img-size 32": "--img-size has no effect with --official",
    "info --img-size 32": "--img-size needs a model",
}
# Options that have an effect in every combination, or are refused by the verb itself, which knows the model.
ALWAYS = {
    "demo": "out seed device num_workers as_json",
    "train": "name fields out resume device num_workers max_pixels processes as_json",
    "evaluate": "run assignments data batch_size protocol device num_workers max_pixels as_json",
    "predict": "run images top device max_pixels as_json",
    "analyze": "model compare data images layers tensor vector metric map_tensor img_size num_images max_maps gallery "
    "batch_size scale resampling colormap probes test_time_registers discover cam seed out device num_workers as_json",
    "reproduce": "listing",
    "recipe": "listing",
    "segment": "run images out device force max_pixels as_json",
    "detect": "run images threshold out device force max_pixels as_json",
    "pack": "data out assignments coco shard_megabytes",
    "export": "run format out data force as_json",
    "serve": "model compare port img_size device max_pixels public",
    "doctor": "quick as_json",
    "bench": "what batch_size rounds out device",
    "convert": "source target official force",
    "info": "model as_json",
}


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """The current directory, with the run `run`, `picture.png`, and the folder `data` of large images."""
    monkeypatch.chdir(tmp_path)
    for folder in (f"data/{name}" for name in ("ant", "bee", "cat")):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (30, 20), (99 * number, 0, 0)).save(tmp_path / folder / f"{number}.png")
    (tmp_path / "run.onnx").touch()
    Image.new("RGB", (30, 20)).save(tmp_path / "picture.png")
    return tmp_path


@pytest.mark.parametrize("command", WITHOUT_EFFECT)
def test_an_option_without_effect_is_refused(mambar_command, place, command):
    before = sorted(place.rglob("*"))
    code, out, err = mambar_command(*command.split())
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"mambar: {WITHOUT_EFFECT[command]}") and len(err) < 160
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("verb", _VERBS)
def test_every_option_is_known_to_have_an_effect_or_has_a_rule(verb):
    command = next(each for each in app.registered_commands if each.name == verb)
    names = set(command.callback.__annotations__) - {"return"}
    ruled = {name for rule in RULES.get(verb, ()) for name in rule.options}
    assert ruled <= names and names - ruled - set(ALWAYS[verb].split()) == set()


@pytest.mark.parametrize("command", ["recipe digits --json", "reproduce --list", "reproduce", f"info {NAME} --json"])
def test_options_with_effect_are_not_refused(mambar_command, command):
    code, out, _ = mambar_command(*command.split())
    assert code == 0 and out


# A command of each verb that decodes images of a user. `pack` copies their bytes; the others read none.
READS_IMAGES = {
    "train": "folder data=data img_size=16 epochs=1 batch_size=2 config.depth=1 config.embed_dim=16 --device cpu "
    "--out new",
    "evaluate": "run --data data --device cpu",
    "predict": "run picture.png",
    "analyze": "run --images picture.png --device cpu --out new",
    "reproduce": "table_imagenet --budget full data=data --device cpu --out new",
    "segment": "segmenter picture.png --device cpu",
    "detect": "detector picture.png --device cpu",
    "export": "run --data data",
    "serve": "run --device cpu",
}


@pytest.mark.parametrize("verb", _VERBS)
def test_verbs_that_read_images_have_max_pixels(mambar_command, verb):
    assert ("--max-pixels" in mambar_command(verb, "--help")[1]) == (verb in READS_IMAGES)


def _upload(models, *, max_pixels, **options):
    """In place of the server: what its page does with an uploaded file."""
    from mambar.web.page import PageState

    PageState(models, max_pixels=max_pixels).upload(Path("picture.png"))


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=pytest.mark.slow) if verb == "serve" else verb for verb in READS_IMAGES]
)
def test_max_pixels_reaches_the_decoder(mambar_command, place, monkeypatch, caplog, verb):
    if verb == "segment":
        body = mambar.load("run").config.replace(num_classes=0)
        model = Segmenter(VisionMamba(body), num_classes=2, channels=8)
        model.classes, model.palette, model.preprocessing = "ab", ((0, 0, 0), (9, 9, 9)), Preprocessing(img_size=16)
        save_segmenter(place / "segmenter", model, name=None, inference=Inference(crop=16, stride=16), force=False)
    if verb == "detect":
        body = VisionMamba(mambar.load("run").config.replace(num_classes=0))
        detector = Detector(body, DetectorConfig(num_classes=2, channels=8, head_dim=8, layers=(0,) * 4))
        detector.classes, detector.preprocessing = ("a", "b"), Preprocessing(img_size=16)
        save_detector(place / "detector", detector)
    if verb == "reproduce":
        # The released weights.
        monkeypatch.setattr("mambar.hub.create_model", lambda name, pretrained: mambar.load("run"))
    if verb == "serve":
        pytest.importorskip("gradio", reason="gradio is the extra app")
        monkeypatch.setattr("mambar.web.server.run_server", _upload)
    code, _, err = mambar_command(verb, *READS_IMAGES[verb].split(), "--max-pixels=100")
    assert code == 2 and "30x20 pixels; at most 100 are decoded" in err + caplog.text, err + caplog.text
