"""Backends to test, tolerances and random inputs for the tests of all ops."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from mambar.ops.dispatch import Backend, backends

# Largest absolute difference over largest absolute reference value: (outputs, gradients). The reference is float64
# throughout and is given the rounded inputs, so the rounding of 16-bit inputs does not count.
TOLERANCES = {
    torch.float64: (1e-11, 1e-11),
    torch.float32: (1e-5, 2e-5),
    torch.float16: (1e-3, 4e-3),
    torch.bfloat16: (8e-3, 3e-2),
}

# `make shapes` checks arguments before the checks of the ops do, and the functions it wraps cannot be traced.
without_shape_hook = pytest.mark.skipif(
    bool(os.environ.get("MAMBAR_SHAPES")), reason="not with the shape-checking hook"
)

SCAN_NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
ACTIVATIONS = ("u", "delta", "B", "C", "z", "x", "xz")


def backend_cases(op: str, dtype: torch.dtype = torch.float32, *, kernels_only: bool = False) -> list[Any]:
    """Parameters `backend, device`: every backend of an op that supports this dtype, on each of its devices."""
    found = []
    for row in backends(op):
        if dtype not in row.dtypes or (kernels_only and not row.kernel):
            continue
        if not row.devices or "cpu" in row.devices:
            found.append(pytest.param(row.name, "cpu", id=row.name, marks=_unless_runnable(row)))
        if not row.devices or "cuda" in row.devices:
            found.append(pytest.param(row.name, "cuda", id=f"{row.name}-cuda", marks=pytest.mark.gpu))
    return found


def _unless_runnable(row: Backend) -> Any:
    # In CI every required package is installed, so that a missing one is a failure there.
    wanted = os.environ.get("CI") == "true"
    return pytest.mark.skipif(row.missing is not None and not wanted, reason=str(row.missing))


def scan_inputs(
    batch: int = 2,
    length: int = 7,
    d_inner: int = 6,
    d_state: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    without: tuple[str, ...] = (),
    seed: int = 0,
    slow_decay: bool = False,
) -> dict[str, Tensor | None]:
    """Inputs of a scan; those in `without` are None. Activations have this dtype, the others at least float32."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    drawn = {
        "u": draw(batch, length, d_inner),
        "delta": draw(batch, length, d_inner) - 1,
        "A": -torch.rand((d_inner, d_state), generator=generator, dtype=torch.float64) * (0.01 if slow_decay else 4),
        "B": draw(batch, length, d_state),
        "C": draw(batch, length, d_state),
        "D": draw(d_inner),
        "z": draw(batch, length, d_inner),
        "delta_bias": draw(d_inner) * 0.5,
        "initial_state": draw(batch, d_inner, d_state),
    }
    return {
        name: None if name in without else tensor.to(device, dtype if name in ACTIVATIONS else wide)
        for name, tensor in drawn.items()
    }


def to_double(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The same numbers in float64 on the CPU, for the reference."""
    return {name: None if t is None else t.detach().to("cpu", torch.float64) for name, t in tensors.items()}


def with_gradients(function, tensors: dict[str, Tensor | None], seed: int = 1) -> dict[str, Tensor]:
    """The outputs of `function(**tensors)` and the gradients of their sum with fixed random weights, by name."""
    leaves = {name: None if t is None else t.detach().clone().requires_grad_() for name, t in tensors.items()}
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
        loss = loss + (output.cpu() * weights).to(torch.float64).sum()
    given = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    gradients = torch.autograd.grad(loss, list(given.values()), allow_unused=True)
    found = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    for (name, leaf), gradient in zip(given.items(), gradients, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return found


def without_short_sums(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """The results but the gradients with fewer than eight entries: a parameter's gradient is a sum over all positions,
    which may cancel to nothing, so that one or two of them have no scale to compare with."""
    return {name: tensor for name, tensor in results.items() if not name.startswith("gradient") or tensor.numel() >= 8}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype, *, times: float = 1) -> None:
    """Every output and gradient within the table's tolerance for this dtype."""
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        assert found[name].shape == right.shape, name
        error = relative_error(found[name], right)
        allowed = TOLERANCES[dtype][name.startswith("gradient")] * times
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.0e}"


def relative_error(found: Tensor, right: Tensor) -> float:
    """Largest absolute difference over largest absolute right value; NaN counts as infinite."""
    difference = (found.detach().to("cpu", torch.float64) - right.detach().to("cpu", torch.float64)).abs()
    if difference.numel() == 0:
        return 0.0
    worst = difference.max().item()
    largest = right.abs().max().item()
    if worst != worst:
        return float("inf")
    return worst / largest if largest else worst
