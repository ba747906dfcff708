"""Models of `weights/` by name: from a folder, and from a local HTTP server into the cache."""

import contextlib
import functools
import hashlib
import http.server
import threading

import pytest
import torch
from PIL import Image

import mambar
from mambar.analysis.analyzed_model import open_model
from mambar.cache import cache_directory
from mambar.cli.main import main
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import CheckpointError, InputError
from mambar.evaluation.prediction import predict_file
from mambar.hub import weights
from mambar.models import VARIANTS, VisionMamba

NAME = "mambar_tiny_patch16_224.pets"
CLASSES = ("cat", "dog", "horse")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder like `weights/` with a small model in half precision; MAMBAR_WEIGHTS names it."""
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MAMBAR_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setitem(VARIANTS, NAME.split(".")[0], VARIANTS[NAME.split(".")[0]].replace(embed_dim=16, depth=2))
    torch.manual_seed(0)
    config = VARIANTS[NAME.split(".")[0]].replace(num_classes=3, img_size=64)
    preprocessing = Preprocessing(img_size=64, crop_pct=0.9)
    directory = tmp_path / "weights" / NAME
    mambar.save_model(directory, VisionMamba(config).half(), name=NAME, classes=CLASSES, preprocessing=preprocessing)
    monkeypatch.setitem(weights.TRAINED, NAME, trained(directory))
    return tmp_path / "weights"


def trained(directory):
    sha256 = hashlib.sha256((directory / "config.json").read_bytes()).hexdigest()
    return weights.TrainedWeights(
        data="pets", top1=50.0, classes=CLASSES, crop_pct=0.9, licence="CC0-1.0", sha256=sha256
    )


@contextlib.contextmanager
def served(folder):
    """The address of a folder, and the paths that were asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def exit_code(*arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    return exit.value.code


def test_a_name_with_a_tag_is_the_model_of_the_folder(folder):
    images = torch.randn(1, 3, 64, 64)
    saved = mambar.load(folder / NAME)
    model = mambar.create_model(NAME)
    assert torch.equal(model.eval()(images), saved(images)) and model(images).dtype == torch.float32
    assert model.classes == CLASSES and model.preprocessing == Preprocessing(img_size=64, crop_pct=0.9)
    assert torch.equal(mambar.load(NAME)(images), saved(images))
    assert NAME in mambar.list_models(pretrained=True) and NAME not in mambar.list_models()
    larger = mambar.create_model(NAME, img_size=96, num_classes=5)
    assert larger.config.grid == (6, 6) and larger.classes is None and larger.preprocessing.img_size == 96
    assert torch.equal(larger.blocks[1].norm.weight, model.blocks[1].norm.weight)
    analyzed = open_model(NAME)
    assert analyzed.name == NAME and analyzed.classes == CLASSES and not analyzed.random_weights
    with pytest.raises(InputError, match="has its own weights, got pretrained='other'; omit it, or the tag"):
        mambar.create_model(NAME, pretrained="other")


def test_commands_take_the_name(folder, tmp_path, capsys):
    Image.new("RGB", (80, 70), "red").save(tmp_path / "red.png")
    assert exit_code("predict", NAME, str(tmp_path / "red.png"), "--device", "cpu") == 0
    assert "horse" in capsys.readouterr().out
    assert exit_code("info", NAME) == 0
    assert "registers, 3 classes" in capsys.readouterr().out
    assert exit_code("info") == 0
    listing = capsys.readouterr().out
    assert NAME in listing and "50.0 % (pets)" in listing


def test_a_url_is_downloaded_once_and_verified(folder, monkeypatch):
    with served(folder) as (url, asked):
        monkeypatch.setenv("MAMBAR_WEIGHTS", url + "/")
        first = mambar.load(NAME)
        assert asked == [f"/{NAME}/config.json", f"/{NAME}/model.safetensors"]
        second = mambar.load(NAME)
        assert len(asked) == 2
    # Without the server too.
    third = mambar.load(NAME)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(first(images), second(images)) and torch.equal(first(images), third(images))
    cached = cache_directory("weights", NAME) / "model.safetensors"
    cached.write_bytes(cached.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="sha256"):
        mambar.load(NAME)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("by_url", [False, True])
def test_a_changed_file_is_refused(folder, monkeypatch, file, by_url):
    path = folder / NAME / file
    path.write_bytes(path.read_bytes().replace(b"dog", b"cow") + b" ")
    with served(folder) as (url, _):
        if by_url:
            monkeypatch.setenv("MAMBAR_WEIGHTS", url)
        with pytest.raises(CheckpointError, match=file):
            mambar.load(NAME)
    assert not (cache_directory("weights", NAME) / "config.json").exists()


def test_missing_weights_are_one_line(folder, monkeypatch, tmp_path, capsys):
    advice = "set MAMBAR_WEIGHTS to the folder weights/ of a checkout of mambar, or to its URL"
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64)).save(image)
    with served(folder) as (url, _):
        pass
    reasons = {
        str(tmp_path / "nowhere"): "There are no weights of",
        url: "Connection refused",
        "ftp://127.0.0.1": "neither a folder nor an http or https address",
    }
    with served(tmp_path) as (empty, _):
        for place, reason in {**reasons, empty: "HTTP Error 404"}.items():
            monkeypatch.setenv("MAMBAR_WEIGHTS", place)
            assert exit_code("predict", NAME, str(image), "--device", "cpu") == 2
            error = capsys.readouterr().err.strip()
            assert reason in error and advice in error and "\n" not in error


def test_the_place_is_the_checkout_by_default(folder, monkeypatch):
    monkeypatch.delenv("MAMBAR_WEIGHTS")
    monkeypatch.setattr(weights, "_CHECKOUT", folder)
    assert weights.trained_directory(NAME) == folder / NAME


@pytest.mark.parametrize("name", weights.TRAINED)
def test_the_models_of_the_repository_are_those_of_the_table(name, monkeypatch):
    monkeypatch.delenv("MAMBAR_WEIGHTS", raising=False)
    model, entry = mambar.load(name), weights.TRAINED[name]
    assert model.classes == entry.classes and model.preprocessing.crop_pct == entry.crop_pct
    directory = weights.trained_directory(name)
    card = (directory / "README.md").read_text("utf-8")
    assert f"{entry.top1:.1f}" in card
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (directory.parent / "README.md").read_text("utf-8")
    assert sum(path.stat().st_size for path in directory.parent.rglob("*") if path.is_file()) < 40_000_000
    assert predict_file(model, directory.parent / "photographs" / "dress.jpg", top=1)[0].name == "dress"
