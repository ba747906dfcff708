"""The device of a command."""

import pytest

from mambar.device import choose_device
from mambar.errors import InputError


def test_devices_that_exist(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [choose_device(name) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda", "sees no GPU"),
        ("mps", "no Apple GPU"),
        ("gpu", "choose auto"),
        ("cuda:x", "choose auto"),
        ("", "choose"),
    ],
)
def test_missing_and_unknown_devices_are_named(monkeypatch, name, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(InputError, match=words):
        choose_device(name)


def test_a_gpu_index_beyond_the_last_one_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match="only 2 GPUs"):
        choose_device("cuda:2")
