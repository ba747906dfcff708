"""Asynchronous copies only from pinned memory to a CUDA GPU."""

from pathlib import Path

import pytest
import torch

import mambar
from mambar.data.loading.to_device import to_device


@pytest.mark.parametrize("device, waits", [("cuda", False), ("cuda:1", False), ("mps", True), ("cpu", True)])
def test_only_a_cuda_copy_is_not_waited_for(device, waits, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda *given, **named: asked.append((given[1], named)) or given[0])
    to_device(torch.ones(2), device)
    to_device(torch.ones(2), torch.device(device))
    assert [given for given, _ in asked] == [device, torch.device(device)]
    assert all(named == {"non_blocking": not waits} for _, named in asked)


def test_the_tensor_arrives():
    assert torch.equal(to_device(torch.arange(3), "cpu"), torch.arange(3))
    assert to_device(torch.arange(3), "meta").device.type == "meta"


def test_nobody_copies_without_waiting_otherwise():
    source = Path(mambar.__file__).parent
    found = [path.name for path in source.rglob("*.py") if "non_blocking" in path.read_text("utf-8")]
    assert found == ["to_device.py"]
