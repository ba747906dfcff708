"""Models by name, with and without released weights."""

import argparse
import socket
import time

import pytest
import timm.models  # noqa: F401, before the client of the hub is replaced in a test
import torch

import mambar
from mambar.cache import cache_directory
from mambar.errors import CheckpointError, CheckpointMismatch, InputError
from mambar.hub.convert import to_official
from mambar.hub.weights import TRAINED
from mambar.models import VARIANTS, VisionMamba


def test_names():
    assert mambar.list_models() == list(VARIANTS)
    released = [f"mambar_{size}_patch16_224" for size in ("small", "base", "large")]
    assert mambar.list_models(pretrained=True) == [*released, *TRAINED]


def test_fields_change_a_variant():
    model = mambar.create_model("mambar_tiny_patch16_224", img_size=64, num_classes=7, depth=2, placement="spread")
    assert model.config.img_size == 64 and model.registers.placement == "spread"
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_wrong_names():
    with pytest.raises(InputError, match="did you mean 'vim_tiny_patch16_224'"):
        mambar.create_model("vim_tiny")
    with pytest.raises(InputError, match="did you mean 'drop_path_rate'"):
        mambar.create_model("vim_tiny_patch16_224", droppath=0.1)
    with pytest.raises(InputError, match="No weights of mambar_tiny_patch16_224"):
        mambar.create_model("mambar_tiny_patch16_224", pretrained=True, depth=1)


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A small stand-in of a released file where the hub's cache would have it."""
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path / "cache"))
    config = VARIANTS["mambar_small_patch16_224"].replace(embed_dim=16, depth=1, img_size=32, num_classes=10)
    model = VisionMamba(config)
    path = tmp_path / "hub" / "snapshots" / "a1b2c3" / "mambar_small_patch16_224.pth"
    path.parent.mkdir(parents=True)
    state = to_official(model.state_dict(), source="mamba-reg", config=config)
    torch.save({"model": state, "args": argparse.Namespace()}, path)
    monkeypatch.setitem(VARIANTS, "mambar_small_patch16_224", config)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, file: str(path))
    return model, path


def test_pretrained(released, caplog):
    model, _ = released
    loaded = mambar.create_model("mambar_small_patch16_224", pretrained=True)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.eval()(images), model.eval()(images))
    assert "carry no licence" in caplog.text
    larger = mambar.create_model("mambar_small_patch16_224", pretrained=True, img_size=48, num_classes=3)
    assert larger.pos_embed.weight.shape[1] == 9
    assert torch.equal(larger.registers.embedding, model.registers.embedding)


def test_the_first_download_is_remembered(released):
    _, path = released
    mambar.create_model("mambar_small_patch16_224", pretrained=True)
    note = cache_directory("weights") / "mambar_small_patch16_224.json"
    assert '"revision": "a1b2c3"' in note.read_text("utf-8")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="was expected"):
        mambar.create_model("mambar_small_patch16_224", pretrained=True)


def test_pretrained_takes_a_path(released, tmp_path):
    model, path = released
    images = torch.randn(1, 3, 32, 32)
    for source in (path, str(path)):
        loaded = mambar.create_model("mambar_small_patch16_224", pretrained=source)
        assert torch.equal(loaded.eval()(images), model.eval()(images))
    mambar.save_model(tmp_path / "run", model)
    fresh = mambar.create_model("mambar_small_patch16_224", pretrained=tmp_path / "run", img_size=48, num_classes=3)
    assert torch.equal(fresh.registers.embedding, model.registers.embedding) and fresh.num_classes == 3
    with pytest.raises(CheckpointMismatch, match="blocks"):
        mambar.create_model("mambar_small_patch16_224", pretrained=path, depth=2)
    with pytest.raises(InputError, match="There is no model at nowhere"):
        mambar.create_model("mambar_small_patch16_224", pretrained="nowhere")
    tiny = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32}
    vit = mambar.create_model("timm/vit_tiny_patch16_224", **tiny)
    mambar.save_model(tmp_path / "vit", vit)
    again = mambar.create_model("timm/vit_tiny_patch16_224", pretrained=tmp_path / "vit", **tiny)
    assert torch.equal(again.eval()(images), vit.eval()(images))


@pytest.mark.parametrize("answer", ["refused", "silence"])
def test_without_network_errors_come_within_seconds(monkeypatch, tmp_path, answer):
    """The client of the hub tries again for a minute; here it is not asked if the hub does not answer."""
    import huggingface_hub

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if answer == "refused":
            server.close()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        calls = {
            r"start_from=FILE.*pretrained=FILE": lambda: mambar.create_model(
                "mambar_base_patch16_224", pretrained=True
            ),
            "give their directory": lambda: mambar.load("someone/model"),
            "hub does not answer.*copy the cache": lambda: mambar.create_model(
                "timm/vit_tiny_patch16_224", pretrained=True
            ),
        }
        for words, call in list(calls.items())[: 1 if answer == "silence" else 3]:
            start = time.monotonic()
            with pytest.raises(InputError, match=words):
                call()
            assert time.monotonic() - start < 5
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_without_network_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    def offline(repository, file):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(InputError, match=r"looked for mambar_base_patch16_224\.pth .* mambar\.load_official"):
        mambar.create_model("mambar_base_patch16_224", pretrained=True)
