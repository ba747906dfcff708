"""Speed of the selective scan for each available backend, after a parity check, relative to the roofline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mambar.bench.ceilings import Ceilings
from mambar.bench.table import Row
from mambar.bench.timing import Work, interleaved
from mambar.ops import available_backends, selective_scan

COLUMNS = ("forward ms", "G states/s", "× roofline", "forward + backward ms", "largest error, forward")
# Backends with a larger difference to float64, relative to the maximum, are not timed.
MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@dataclass(frozen=True, kw_only=True)
class ScanShape:
    """The shape of a scan of one direction: batch, tokens, channels, states per channel."""

    batch: int
    length: int = 208
    inner: int = 1536
    state: int = 16

    @property
    def states(self) -> int:
        """State updates of one call."""
        return self.batch * self.length * self.inner * self.state

    def min_bytes(self, element: int) -> int:
        """Bytes that one call must move: u, delta, z, B and C are read once, y is written once."""
        return self.batch * self.length * (4 * self.inner + 2 * self.state) * element

    def __str__(self) -> str:
        return f"{self.batch} x {self.length} x {self.inner}, {self.state} states"


def scan_inputs(shape: ScanShape, *, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Arguments of `selective_scan` with the value ranges of a trained model: small steps, rates from 1 to N."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device)

    rows = (shape.batch, shape.length)
    rates = torch.arange(1, shape.state + 1.0, device=device).expand(shape.inner, shape.state).contiguous()
    u, delta = (draw(*rows, shape.inner).to(dtype) for _ in range(2))
    B, C = (draw(*rows, shape.state).to(dtype) for _ in range(2))
    return [u, delta, -rates, B, C, draw(shape.inner), draw(*rows, shape.inner).to(dtype), draw(shape.inner) - 4]


def scan_error(name: str, *, device: str, dtype: torch.dtype) -> float:
    """The largest difference of a backend's output to the float64 reference, relative to its maximum."""
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
    exclude: Sequence[str] = ("reference",),
) -> list[Row]:
    """One row per scan backend; without numbers, but with a reason, if it cannot run or fails the parity check."""
    rows, works, errors = [], {}, {}
    for backend in available_backends("selective_scan", device):
        if backend.name in exclude or dtype not in backend.dtypes:
            continue
        if backend.missing is not None:
            rows.append(Row(name=f"{backend.name}: {backend.missing}"))
            continue
        errors[backend.name] = scan_error(backend.name, device=device, dtype=dtype)
        if not errors[backend.name] <= MAX_ERROR[dtype]:
            rows.append(Row(name=f"{backend.name}: differs by {errors[backend.name]:.1e}, not timed"))
            continue
        works[backend.name] = _works(shape, backend.name, device=device, dtype=dtype)
    forward = interleaved({name: pair[0] for name, pair in works.items()}, device=device, rounds=rounds)
    both = interleaved({name: pair[1] for name, pair in works.items()}, device=device, rounds=max(3, rounds // 2))
    element = torch.empty(0, dtype=dtype).element_size()
    roofline = max(shape.states / ceilings.exponentials, shape.min_bytes(element) / ceilings.bytes)
    for name in works:
        seconds = forward[name].median
        speed = (seconds * 1e3, shape.states / seconds / 1e9, seconds / roofline)
        rows.append(Row(name=name, cells=(*speed, both[name].milliseconds, f"{errors[name]:.1e}")))
    return rows


def _works(shape: ScanShape, name: str, *, device: str, dtype: torch.dtype) -> tuple[Work, Work]:
    tensors = scan_inputs(shape, device=device, dtype=dtype)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    weights = torch.randn_like(tensors[0])

    def scan(arguments: Sequence[Tensor]) -> Tensor:
        return selective_scan(*arguments, delta_softplus=True, backend=name)

    forward: Callable[[], object] = torch.no_grad()(lambda: scan(tensors))
    return forward, lambda: torch.autograd.grad(scan(leaves), leaves, weights)
