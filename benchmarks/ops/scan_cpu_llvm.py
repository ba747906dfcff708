"""Time of the LLVM scan kernels on one CPU thread, relative to the roofline and to a sequential loop.

    uv run python benchmarks/ops/scan_cpu_llvm.py            # batch 1 and 8, shapes of Base
    uv run python benchmarks/ops/scan_cpu_llvm.py --loop     # also the sequential loop, forward only
    uv run python benchmarks/ops/scan_cpu_llvm.py --threads  # also two threads against one, in wall time

Measures both directions with softplus, skip, gate and average at length 208, d_inner 1536, d_state 16 in float32: as
two calls of `selective_scan`, and as the fused kernel of the mix. First checks parity with the float64 reference.
Values are CPU time of the process over interleaved rounds: median and minimum. The roofline is the arithmetic alone, on
registers, measured in the same run. Results are printed as Markdown.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mambar.bench.machine import describe
from mambar.bench.table import Row, markdown
from mambar.ops import selective_scan
from mambar.ops.bidirectional_mix.direction import ScanDirection
from mambar.ops.bidirectional_mix.llvm_scans import scan_both, scan_both_backward
from mambar.ops.llvm.launch import roofline_states_per_second
from mambar.ops.llvm.machine import current_machine
from mambar.ops.selective_scan.llvm import Scan, empty_checkpoints

Work = Callable[[], object]

LENGTH, INNER, STATE, RANK = 208, 1536, 16, 48
FIRST_CALLS = (
    "import time, torch; torch.set_num_threads(1)\n"
    "from mambar.ops import selective_scan\n"
    "import mambar.ops.selective_scan.llvm\n"
    "u = torch.randn(1, 16, 64, requires_grad=True); B = torch.randn(1, 16, 16); A = -torch.rand(64, 16)\n"
    "start = time.process_time(); y = selective_scan(u, u, A, B, B, delta_softplus=True, backend='llvm')\n"
    "middle = time.process_time(); y.sum().backward()\n"
    "print(f'{middle - start:.3f} {time.process_time() - middle:.3f}')"
)


def draw(batch: int) -> dict[str, list[Tensor]]:
    """Arguments of the two scans: halves of one xz, slices of one projection, values as in a trained model."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    u, z = normal(batch, LENGTH, 2 * INNER).chunk(2, dim=-1)
    directions = {}
    for name in ("forward", "backward"):
        projected = normal(batch, LENGTH, RANK + 2 * STATE)
        _, B, C = projected.split([RANK, STATE, STATE], dim=-1)
        rates = torch.arange(1, STATE + 1.0).expand(INNER, STATE).contiguous()
        directions[name] = [u, normal(batch, LENGTH, INNER), -rates, B, C, normal(INNER), z, normal(INNER) - 4]
    return directions


def both(directions: dict[str, list[Tensor]], backend: str) -> Tensor:
    """Both directions as two calls of `selective_scan`."""
    forward, backward = (
        selective_scan(*tensors, delta_softplus=True, reverse=name == "backward", backend=backend)
        for name, tensors in directions.items()
    )
    return (forward + backward) / 2


def sequential(u, delta, A, B, C, D, z, delta_bias, reverse):
    """The scan as a Python loop over precomputed decays and inputs."""
    if reverse:
        u, delta, B, C, z = (tensor.flip(1) for tensor in (u, delta, B, C, z))
    dt = F.softplus(delta + delta_bias)
    decays = torch.exp(torch.einsum("ble,en->blen", dt, A))
    drives = torch.einsum("ble,bln,ble->blen", dt, B, u)
    state, outputs = u.new_zeros(len(u), *A.shape), []
    for t in range(u.shape[1]):
        state = decays[:, t] * state + drives[:, t]
        outputs.append(torch.einsum("ben,bn->be", state, C[:, t]))
    y = (torch.stack(outputs, 1) + u * D) * F.silu(z)
    return y.flip(1) if reverse else y


def loop(directions: dict[str, list[Tensor]]) -> Tensor:
    """Both directions with the sequential loop."""
    return (sequential(*directions["forward"], False) + sequential(*directions["backward"], True)) / 2


def check_parity() -> None:
    """Exits if the output differs from float64 by more than 1e-6 of the maximum, or a gradient by more than 1e-5."""
    plain = draw(1)
    results = {}
    for backend, dtype in (("llvm", torch.float32), ("reference", torch.float64)):
        leaves = {
            n: [t.detach().to(dtype, copy=True).requires_grad_() for t in tensors] for n, tensors in plain.items()
        }
        y = both(leaves, backend)
        flat = [tensor for tensors in leaves.values() for tensor in tensors]
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        results[backend] = [y, *torch.autograd.grad(y, flat, weight)]
    pairs = zip(results["llvm"], results["reference"], strict=True)
    output, *gradients = [((found - right).abs().max() / right.abs().max()).item() for found, right in pairs]
    print(f"Parity with float64: output {output:.1e}, gradients {max(gradients):.1e} of the maximum")
    if output > 1e-6 or max(gradients) > 1e-5:
        raise SystemExit("The kernels differ too much from float64; nothing is timed.")


def fused(directions: dict[str, list[Tensor]]) -> tuple[Work, Work, Work]:
    """Forward, forward with checkpoints, and backward of the fused kernels of the mix."""
    z = directions["forward"][6]
    scans = [Scan(u, delta, A, B, C, D, bias) for u, delta, A, B, C, D, _, bias in directions.values()]
    checkpoints = [empty_checkpoints(scan.u, scan.A) for scan in scans]
    dout, dz = torch.randn(z.shape), torch.empty(z.shape)
    # Of these only A, D, the bias and the sizes are read.
    taps, x_proj, dt_proj = torch.zeros(INNER, 4), torch.zeros(RANK + 2 * STATE, INNER), torch.zeros(INNER, RANK)
    ways = [
        ScanDirection(
            conv_weight=taps,
            conv_bias=None,
            x_proj=x_proj,
            dt_proj=dt_proj,
            dt_bias=bias,
            A=A,
            D=D,
        )
        for _, _, A, _, _, D, _, bias in directions.values()
    ]
    projections = [torch.cat([torch.zeros(*scan.B.shape[:2], RANK), scan.B, scan.C], dim=-1) for scan in scans]
    inputs = (z, ways, [scan.u for scan in scans], projections, [scan.delta for scan in scans])
    return (
        lambda: scan_both(current_machine(), *inputs, None, average=True, A_is_log=False),
        lambda: scan_both(current_machine(), *inputs, checkpoints, average=True, A_is_log=False),
        lambda: scan_both_backward(dout, z, dz, scans, checkpoints, average=True),
    )


def public_backward(directions: dict[str, list[Tensor]]) -> Work:
    """The backward of two calls of `selective_scan`, on a retained graph."""
    leaves = {name: [t.detach().requires_grad_() for t in tensors] for name, tensors in directions.items()}
    y = both(leaves, "llvm")
    flat = [tensor for tensors in leaves.values() for tensor in tensors]
    weight = torch.randn(y.shape)
    return lambda: torch.autograd.grad(y, flat, weight, retain_graph=True)


def interleaved(works: dict[str, Work], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every round, interleaved, after one warm-up call of each."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start = clock()
            work()
            seconds[name].append(clock() - start)
    return seconds


def time_op(batch: int, rounds: int, *, with_loop: bool) -> None:
    """Prints one table: milliseconds, states per second, and ratios to the roofline and the loop."""
    directions = draw(batch)
    forward, saving, backward = fused(directions)
    works: dict[str, Work] = {
        "forward, two calls": torch.no_grad()(lambda: both(directions, "llvm")),
        "forward, fused": forward,
        "forward with checkpoints, fused": saving,
        "backward, two calls": public_backward(directions),
        "backward, fused": backward,
    }
    rooflines = {kind: roofline_states_per_second(backward=kind == "backward") for kind in ("forward", "backward")}
    seconds = interleaved(works, rounds, time.process_time)
    rooflines = {
        kind: max(rate, roofline_states_per_second(backward=kind == "backward")) for kind, rate in rooflines.items()
    }
    slow = (
        interleaved({"loop": torch.no_grad()(lambda: loop(directions))}, 3, time.process_time)["loop"]
        if with_loop
        else []
    )
    states = 2 * batch * LENGTH * INNER * STATE
    rows = []
    for name, values in seconds.items():
        median, roofline = statistics.median(values), rooflines[name.split(",")[0].split()[0]]
        ratio = f"{statistics.median(slow) / median:.0f}x" if slow and name.startswith("forward") else None
        least = min(values)
        cells = (
            median * 1e3,
            least * 1e3,
            states / median / 1e9,
            states / least / 1e9,
            roofline * median / states,
            ratio,
        )
        rows.append(Row(name=name, cells=cells))
    print(f"\nBatch {batch}, {rounds} rounds; roofline {rooflines['forward'] / 1e9:.1f} G states/s forward, ", end="")
    print(f"{rooflines['backward'] / 1e9:.1f} backward (states recomputed)\n")
    columns = ["median ms", "minimum ms", "G states/s", "best G states/s", "× roofline", "speedup over the loop"]
    print(markdown(columns, rows), flush=True)


def time_threads(rounds: int) -> None:
    """Prints wall times with one and two threads."""
    rows = []
    for batch in (1, 8):
        forward, _, backward = fused(draw(batch))
        for name, work in (("forward", forward), ("backward", backward)):
            least = []
            for count in (1, 2):
                torch.set_num_threads(count)
                least.append(min(interleaved({name: work}, rounds, time.perf_counter)[name]))
            rows.append(
                Row(name=f"{name}, batch {batch}", cells=(*(value * 1e3 for value in least), least[0] / least[1]))
            )
    torch.set_num_threads(1)
    print("\nWall time of the fused scans, minimum over the rounds\n")
    print(markdown(["1 thread ms", "2 threads ms", "ratio"], rows), flush=True)


def time_first_calls() -> None:
    """Prints the time of the first calls in new processes: without cached code, then with it."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"MAMBAR_CACHE": directory}
        for name in ("compiling", "from the cache"):
            command = [sys.executable, "-c", FIRST_CALLS]
            printed = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
            ).stdout
            rows.append(Row(name=name, cells=tuple(float(value) for value in printed.split())))
    print("\nFirst call in a new process, seconds of CPU time (after importing torch and llvmlite)\n")
    print(markdown(["forward", "backward"], rows), flush=True)


def main() -> None:
    """Checks parity, measures, prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", action="store_true", help="also measure the sequential loop (forward only)")
    parser.add_argument("--threads", action="store_true", help="also compare two threads with one")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds per measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe("cpu"))
    check_parity()
    time_first_calls()
    for batch in (1, 8):
        time_op(batch, options.rounds, with_loop=options.loop)
    if options.threads:
        time_threads(options.rounds)


if __name__ == "__main__":
    main()
