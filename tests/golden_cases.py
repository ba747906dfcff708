"""Reads the golden vectors of the released code (tests/golden/README.md)."""

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

GOLDEN = Path(os.environ.get("MAMBAR_GOLDEN", Path(__file__).parent / "golden"))


@dataclass(frozen=True)
class Case:
    """One case: `case["logits"]` is a tensor as stored (inputs float32, results float64)."""

    id: str
    kind: str
    config: dict[str, Any]
    info: dict[str, Any]
    tensors: tuple[str, ...]

    def __getitem__(self, name: str) -> Tensor:
        # A copy: what one test does to it (requires_grad, grad) stays with that test.
        return _file(self.info["file"])[self.info["prefix"] + name].clone()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __str__(self) -> str:
        return self.id


@functools.cache
def _index() -> dict[str, Any]:
    return json.loads((GOLDEN / "index.json").read_text("utf-8"))


@functools.cache
def _file(name: str) -> dict[str, Tensor]:
    data = (GOLDEN / name).read_bytes()
    recorded = next(entry["sha256"] for entry in _index()["files"] if entry["file"] == name)
    assert hashlib.sha256(data).hexdigest() == recorded, f"{name} is damaged"
    return safetensors.torch.load(data)


@functools.cache
def cases(kind: str) -> list[Case]:
    """All cases of one kind; a kind without cases is an error, so that no test runs on nothing."""
    found = []
    for entry in _index()["files"]:
        if entry["kind"] != kind:
            continue
        for info in json.loads((GOLDEN / entry["description"]).read_text("utf-8"))["cases"]:
            found.append(
                Case(id=info["id"], kind=kind, config=info.get("config", {}), info=info, tensors=tuple(info["tensors"]))
            )
    assert len(found) == _index()["cases_by_kind"][kind] > 0, kind
    return found


@functools.cache
def manifest() -> dict[str, Any]:
    """Facts of the full-size released models: names, shapes, counts, decay groups, start-up statistics."""
    return json.loads((GOLDEN / "manifest.json").read_text("utf-8"))


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Largest absolute difference over the largest absolute reference value; a zero reference must be met exactly."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    difference = (found.detach().to(torch.float64) - expected).abs()
    assert not difference.isnan().any(), "NaN"
    largest = expected.abs().max().item() if expected.numel() else 0.0
    worst = difference.max().item() if difference.numel() else 0.0
    assert worst <= tolerance * largest, f"{worst / largest if largest else worst:.2e} > {tolerance:.0e}"
