"""The self-test of `mambar doctor`: golden values of the official code, on every available backend.

`golden.safetensors` in this directory is a subset of tests/golden, whose README documents its origin: one scan, and one
model with the gradient of its input.
"""

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mambar.hub.released import load_official
from mambar.ops import available_backends, selective_scan, use_backend

# Largest allowed difference relative to the maximum in float32, from the README of the golden values.
_OUTPUT, _GRADIENT = 2e-5, 1e-4


def self_test() -> dict[str, str | None]:
    """The result of each check by name: None if it passed, else the error."""
    stored = safetensors.torch.load_file(Path(__file__).with_name("golden.safetensors"))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found: dict[str, str | None] = {}
    for device in devices:
        for backend in available_backends("selective_scan", device):
            if backend.missing is None:
                name = backend.name
                found[f"scan on {device}: {name}"] = _checked(lambda n=name, d=device: _scan(stored, n, d))
        for choice in ("auto", "reference"):
            found[f"model on {device}: {choice}"] = _checked(lambda c=choice, d=device: _model(stored, c, d))
    return found


def _checked(check: Callable[[], str | None]) -> str | None:
    try:
        return check()
    except Exception as error:  # any error of a broken installation is a result
        return f"{type(error).__name__}: {error}"


def _scan(stored: dict[str, Tensor], backend: str, device: str) -> str | None:
    case = {name.removeprefix("scan/"): t.to(device) for name, t in stored.items() if name.startswith("scan/")}

    def given(name: str) -> Tensor | None:
        tensor = case.get(name)
        if tensor is None:
            return None
        # The golden scans are channels first.
        return tensor.transpose(1, 2).contiguous() if tensor.dim() == 3 else tensor

    u, delta, B, C = (given(name) for name in ("u", "delta", "B", "C"))
    assert u is not None and delta is not None and B is not None and C is not None
    y = selective_scan(
        u, delta, case["A"], B, C, given("D"), given("z"), given("delta_bias"), delta_softplus=True, backend=backend
    )
    return _far(y.transpose(1, 2), case["out"], _OUTPUT)


def _model(stored: dict[str, Tensor], backend: str, device: str) -> str | None:
    case = {name.removeprefix("model/"): t for name, t in stored.items() if name.startswith("model/")}
    released = {name.removeprefix("param/"): t for name, t in case.items() if name.startswith("param/")}
    model = load_official(released).to(device).eval()
    images = case["input"].to(device).clone().requires_grad_()
    with use_backend(backend):
        logits = model(images)
        (logits * case["loss_weight"].to(device)).sum().backward()
    assert images.grad is not None
    return _far(logits, case["logits"], _OUTPUT) or _far(images.grad, case["grad_input"], _GRADIENT)


def _far(found: Tensor, expected: Tensor, allowed: float) -> str | None:
    difference = (found.detach().cpu().double() - expected.cpu().double()).abs().max()
    relative = float(difference / expected.double().abs().max())
    return None if relative <= allowed else f"deviates by {relative:.1e}, at most {allowed:.0e} is allowed"
