"""Speed of the ops on this machine: every backend that can run here, parity first, beside the floor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mambar.bench.ceilings import Ceilings
from mambar.bench.table import Row
from mambar.bench.timing import Work, interleaved
from mambar.ops import available_backends, selective_scan

COLUMNS = ("forward ms", "G states/s", "× floor", "forward + backward ms", "largest error, forward")
# Largest deviation from float64, over the largest value, that is still timed.
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@dataclass(frozen=True, kw_only=True)
class ScanShape:
    """A scan of one direction: batch, tokens, channels, states."""

    batch: int
    length: int = 208
    inner: int = 1536
    state: int = 16

    @property
    def states(self) -> int:
        """States that one call walks through."""
        return self.batch * self.length * self.inner * self.state

    def least_bytes(self, element: int) -> int:
        """u, delta and z read once, y written once; B and C beside them."""
        return self.batch * self.length * (4 * self.inner + 2 * self.state) * element

    def __str__(self) -> str:
        return f"{self.batch} x {self.length} x {self.inner}, {self.state} states"


def scan_inputs(shape: ScanShape, *, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Arguments of `selective_scan` in the ranges of a trained model: small steps, rates from 1 to N."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device)

    rows = (shape.batch, shape.length)
    rates = torch.arange(1, shape.state + 1.0, device=device).expand(shape.inner, shape.state).contiguous()
    return [
        draw(*rows, shape.inner).to(dtype),
        draw(*rows, shape.inner).to(dtype),
        -rates,
        draw(*rows, shape.state).to(dtype),
        draw(*rows, shape.state).to(dtype),
        draw(shape.inner),
        draw(*rows, shape.inner).to(dtype),
        draw(shape.inner) - 4,
    ]


def scan_error(name: str, *, device: str, dtype: torch.dtype) -> float:
    """The largest deviation of a backend's output from the float64 reference on the same rounded inputs."""
    tensors = scan_inputs(ScanShape(batch=1, length=61, inner=96), device=device, dtype=dtype)
    right = selective_scan(*(t.double() for t in tensors), delta_softplus=True, backend="reference")
    found = selective_scan(*tensors, delta_softplus=True, backend=name)
    return float((found.double() - right).abs().max() / right.abs().max())


def bench_scan(
    shape: ScanShape,
    *,
    device: str,
    dtype: torch.dtype,
    ceilings: Ceilings,
    rounds: int = 7,
    leave_out: Sequence[str] = ("reference",),
) -> list[Row]:
    """One row a backend of the scan; one that cannot run here or is wrong says so instead of figures."""
    rows, works, errors = [], {}, {}
    for backend in available_backends("selective_scan", device):
        if backend.name in leave_out or dtype not in backend.dtypes:
            continue
        if backend.missing is not None:
            rows.append(Row(name=f"{backend.name}: {backend.missing}"))
            continue
        errors[backend.name] = scan_error(backend.name, device=device, dtype=dtype)
        if not errors[backend.name] <= ALLOWED[dtype]:
            rows.append(Row(name=f"{backend.name}: wrong by {errors[backend.name]:.1e}, not timed"))
            continue
        works[backend.name] = _works(shape, backend.name, device=device, dtype=dtype)
    forward = interleaved({name: pair[0] for name, pair in works.items()}, device=device, rounds=rounds)
    both = interleaved({name: pair[1] for name, pair in works.items()}, device=device, rounds=max(3, rounds // 2))
    element = torch.empty(0, dtype=dtype).element_size()
    floor = max(shape.states / ceilings.exponentials, shape.least_bytes(element) / ceilings.bytes)
    for name in works:
        seconds = forward[name].median
        rows.append(
            Row(
                name=name,
                cells=(
                    seconds * 1e3,
                    shape.states / seconds / 1e9,
                    seconds / floor,
                    both[name].milliseconds,
                    f"{errors[name]:.1e}",
                ),
            )
        )
    return rows


def _works(shape: ScanShape, name: str, *, device: str, dtype: torch.dtype) -> tuple[Work, Work]:
    tensors = scan_inputs(shape, device=device, dtype=dtype)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    weights = torch.randn_like(tensors[0])

    def scan(arguments: Sequence[Tensor]) -> Tensor:
        return selective_scan(*arguments, delta_softplus=True, backend=name)

    forward: Callable[[], object] = torch.no_grad()(lambda: scan(tensors))
    return forward, lambda: torch.autograd.grad(scan(leaves), leaves, weights)
