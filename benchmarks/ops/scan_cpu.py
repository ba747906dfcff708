"""Time of every scan backend on one CPU thread, relative to the sequential loop of mamba-ssm's reference.

    uv run python benchmarks/ops/scan_cpu.py            # forward at batch 1 and 8, forward + backward at batch 1
    uv run python benchmarks/ops/scan_cpu.py --all      # also forward + backward at batch 8; the loop takes minutes

Measures one direction with softplus, skip and gate: 208 tokens, 1536 channels, 16 states, float32. First checks parity
with the float64 reference. Values are medians of the CPU time of the process over interleaved rounds, printed as
Markdown.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from mambar.bench.machine import describe
from mambar.bench.table import Row, markdown
from mambar.bench.timing import Work, interleaved
from mambar.ops import available_backends, selective_scan

LENGTH, INNER, STATE = 208, 1536, 16
SEQUENTIAL = "sequential loop (channels first, as mamba-ssm)"


def sequential(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor, *, time: int
) -> Tensor:
    """The scan as a Python loop over precomputed decays and inputs; `time` is the time dimension.

    With time = 2 tensors are channels first, as in mamba-ssm's `selective_scan_ref`; with 1 they are channels last.
    """
    to_rows = {1: "ble", 2: "bel"}[time]
    states = {1: "bln", 2: "bnl"}[time]
    together = {1: "blen", 2: "beln"}[time]
    per_channel = {1: (INNER,), 2: (INNER, 1)}[time]
    dt = F.softplus(delta + delta_bias.view(per_channel))
    decays = torch.exp(torch.einsum(f"{to_rows},en->{together}", dt, A))
    drives = torch.einsum(f"{to_rows},{states},{to_rows}->{together}", dt, B, u)
    state = u.new_zeros(len(u), *A.shape)
    outputs = []
    for t in range(u.shape[time]):
        state = decays.select(time, t) * state + drives.select(time, t)
        outputs.append(torch.einsum("ben,bn->be", state, C.select(time, t)))
    return (torch.stack(outputs, time) + u * D.view(per_channel)) * F.silu(z)


def inputs(batch: int) -> list[Tensor]:
    """Arguments of `selective_scan` with the value ranges of a trained model: small steps, rates from 1 to 16."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rates = torch.arange(1, STATE + 1.0).expand(INNER, STATE)
    return [
        draw(batch, LENGTH, INNER),
        draw(batch, LENGTH, INNER),
        -rates.contiguous(),
        draw(batch, LENGTH, STATE),
        draw(batch, LENGTH, STATE),
        draw(INNER),
        draw(batch, LENGTH, INNER),
        draw(INNER) - 4,
    ]


def channels_first(tensors: list[Tensor]) -> list[Tensor]:
    """The same arguments with time last."""
    return [tensor.transpose(1, 2).contiguous() if tensor.dim() == 3 else tensor for tensor in tensors]


def check_parity(names: list[str]) -> None:
    """Exits if a forward result differs from the float64 reference by more than 1e-5."""
    tensors = inputs(1)
    right = selective_scan(*(t.double() for t in tensors), delta_softplus=True, backend="reference")
    found = {name: selective_scan(*tensors, delta_softplus=True, backend=name) for name in names}
    found[SEQUENTIAL] = sequential(*channels_first(tensors), time=2).transpose(1, 2)
    found["sequential loop (channels last)"] = sequential(*tensors, time=1)
    for name, y in found.items():
        error = ((y.double() - right).abs().max() / right.abs().max()).item()
        print(f"parity of {name}: {error:.1e}")
        if not error <= 1e-5:
            raise SystemExit(f"{name} differs too much; nothing is timed.")


def works(names: list[str], batch: int, *, both_passes: bool) -> dict[str, Work]:
    """One call per implementation."""
    tensors = inputs(batch)
    weights = torch.randn(tensors[0].shape)

    def work(scan, tensors: list[Tensor], weights: Tensor) -> Work:
        if not both_passes:
            return torch.no_grad()(lambda: scan(*tensors))
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        return lambda: torch.autograd.grad(scan(*leaves), leaves, weights)

    def by(name: str):
        return lambda *tensors: selective_scan(*tensors, delta_softplus=True, backend=name)

    implementations = {name: work(by(name), tensors, weights) for name in names}
    implementations[SEQUENTIAL] = work(
        lambda *tensors: sequential(*tensors, time=2), channels_first(tensors), weights.transpose(1, 2)
    )
    implementations["sequential loop (channels last)"] = work(
        lambda *tensors: sequential(*tensors, time=1), tensors, weights
    )
    return implementations


def main() -> None:
    """Checks parity, measures, prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also measure forward + backward at batch 8")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds per measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe("cpu"))
    names = [row.name for row in available_backends("selective_scan", "cpu") if row.missing is None]
    check_parity(names)
    cases = {
        "forward, batch 1": (1, False),
        "forward, batch 8": (8, False),
        "forward + backward, batch 1": (1, True),
    }
    if options.all:
        cases["forward + backward, batch 8"] = (8, True)
    for title, (batch, both_passes) in cases.items():
        implementations = works(names, batch, both_passes=both_passes)
        rounds = options.rounds if not both_passes else max(1, options.rounds // (3 * batch))
        timings = interleaved(implementations, rounds=rounds)
        slowest = timings[SEQUENTIAL].median
        rows = [
            Row(name=name, cells=(timing.milliseconds, str(timing), f"{slowest / timing.median:.1f}x"))
            for name, timing in timings.items()
        ]
        print(f"\n{title} ({rounds} rounds)\n")
        print(markdown(["ms", "median (quartiles)", "speedup over the sequential loop"], rows), flush=True)


if __name__ == "__main__":
    main()
