"""Time of the GPU kernels, relative to mamba-ssm and to the peak rates of the hardware, after a parity check.

    PYTHONPATH=src python benchmarks/ops/kernels_gpu.py --out benchmarks/results/gpu-ops.md

Values are medians over replayed CUDA graphs, which exclude Python overhead. Those of mamba-ssm and causal-conv1d were
measured on the same GPU model on 2026-11-22. The lower bound of a time is its memory traffic at the measured copy rate,
or one exponential per state. Results are printed as Markdown and written to --out.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mambar.bench.machine import describe
from mambar.bench.table import Row, markdown
from mambar.ops.bidirectional_mix import cuda as mix
from mambar.ops.bidirectional_mix.direction import ScanDirection
from mambar.ops.cuda.conv import conv_backward, conv_forward
from mambar.ops.cuda.scan import ScanParams, empty_states, gate_backward, scan_backward, scan_forward
from mambar.ops.rms_norm import triton as norm
from mambar.ops.selective_scan import cuda, reference

# batch, length, inner: mamba-ssm's forward and backward in milliseconds.
SHAPES = {
    (128, 208, 1536): (1.536, 4.615),
    (128, 208, 384): (0.394, 1.184),
    (16, 589, 1536): (0.689, 1.936),
    (4, 4100, 1536): (1.053, 3.719),
    (1, 208, 1536): (0.047, 0.220),
}
STATE = 16
# Exponentials per second of the special-function units: 16 per clock and multiprocessor.
EXPONENTIALS = 3.7e12


def milliseconds(work: Callable[[], object], *, calls: int = 10, rounds: int = 7) -> float:
    """The median time of a call inside a replayed graph."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    graph.replay()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return statistics.median(times)


def copy_rate(size: int = 2**31) -> float:
    """Bytes per second, read plus written, of a large copy; in a graph it would use the slower copy engine."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return 2 * size / statistics.median(times) * 1e3


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random numbers on the GPU."""
    return torch.randn(shape, device="cuda").to(dtype)


def scan_arguments(batch: int, length: int, inner: int) -> tuple[Tensor, ...]:
    """u, delta, A, B, C, D, z, bias; u and z halves of one tensor, B and C columns of another, as in the mixer."""
    xz, columns = draw(batch, length, 2 * inner), draw(batch, length, 48 + 2 * STATE)
    wide = torch.float32
    A = -torch.rand(inner, STATE, device="cuda") * 8 - 0.05
    B, C = columns[..., 48 : 48 + STATE], columns[..., 48 + STATE :]
    delta = draw(batch, length, inner) - 2
    return xz[..., :inner], delta, A, B, C, draw(inner, dtype=wide), xz[..., inner:], draw(inner, dtype=wide) * 0.3


def check_scan() -> float:
    """The largest relative error of outputs and gradients in bfloat16 against float64; raises above 4e-3."""
    arguments = scan_arguments(2, 209, 256)
    options = {"delta_softplus": True, "reverse": True}
    exact = [argument.double().requires_grad_() for argument in arguments]
    wanted, _ = reference.selective_scan(*exact, None, **options)
    y, _, saved = cuda.forward(*arguments, None, **options, for_backward=True)
    dy = torch.randn_like(y)
    gradients = torch.autograd.grad((wanted * dy).sum(), exact)
    found = cuda.backward(dy, None, *arguments, None, saved, **options)
    pairs = zip((y, *found[:8]), (wanted, *gradients), strict=True)
    worst = max(((one.double() - other).norm() / other.norm()).item() for one, other in pairs)
    if not worst <= 4e-3:
        raise SystemExit(f"the scan differs from float64 by {worst:.1e}; nothing is timed.")
    return worst


def scan(shape: tuple[int, int, int], peer_forward: float, peer_backward: float) -> Row:
    """One row: the scan kernels on one shape, forward and backward, relative to mamba-ssm."""
    batch, length, inner = shape
    u, delta, A, B, C, D, z, bias = scan_arguments(*shape)
    params = (ScanParams(A=A, D=D, bias=bias),)
    last = torch.empty(batch, inner, STATE, device="cuda")
    forward = milliseconds(lambda: scan_forward(u, delta, B, C, z, params, last=last))
    dy, pregate = torch.randn_like(delta), torch.randn_like(delta)
    states = empty_states(u, u.shape, directions=1, state=STATE)
    scan_forward(u, delta, B, C, z, params, states=states)
    kernel = milliseconds(lambda: scan_backward(dy, u, delta, B, C, params, states=states), calls=4)
    tensors = (dy, None, u, delta, A, B, C, D, z, bias, None, [states, pregate])
    whole = milliseconds(lambda: cuda.backward(*tensors, delta_softplus=True, reverse=False), calls=4)
    bound = batch * length * inner * STATE / EXPONENTIALS * 1e3
    cells = (forward, f"{peer_forward / forward:.1f}x", bound, kernel, whole, f"{peer_backward / whole:.1f}x")
    print(shape, *cells, file=sys.stderr, flush=True)
    return Row(name=f"{batch} x {length} x {inner}", cells=cells)


def mixer_kernels(copy_rate: float) -> list[Row]:
    """Rows of the other kernels of a Base mixer at batch 128, and of the whole bidirectional mix."""
    batch, length, inner, rank = 128, 208, 1536, 48
    size = batch * length * inner * 2
    xz = draw(batch, length, 2 * inner)
    x, z = xz.chunk(2, dim=-1)
    weight, bias = draw(inner, 4, dtype=torch.float32), draw(inner, dtype=torch.float32)
    weights = ((weight, bias), (weight, bias))
    two, out, dxz = draw(2, batch, length, inner), draw(batch, length, inner), torch.empty_like(xz)
    dx, dz = dxz.chunk(2, dim=-1)
    params, delta = ScanParams(A=-torch.rand(inner, STATE, device="cuda") * 8, D=bias, bias=bias * 0.3 - 2), two - 2
    columns = draw(2, batch, length, rank + 2 * STATE)
    B, C = columns[..., rank : rank + STATE], columns[..., rank + STATE :]
    direction = ScanDirection(
        conv_weight=weight,
        conv_bias=bias,
        x_proj=draw(rank + 2 * STATE, inner) * inner**-0.5,
        dt_proj=draw(inner, rank) * rank**-0.5,
        dt_bias=params.bias,
        A=params.A,
        D=bias,
    )
    mixed, saved = mix.forward(xz, direction, direction, average=True, for_backward=True)
    states = saved[1]
    rows, width = batch * length, 768
    branch, stream, gain = draw(rows, width), draw(rows, width, dtype=torch.float32), draw(width, dtype=torch.float32)
    _, total, inverse = norm.forward(branch, stream, gain, eps=1e-5, dtype=branch.dtype)
    works: dict[str, tuple[Callable[[], object], float]] = {
        "convolution + SiLU, both directions": (lambda: conv_forward(x, weights, silu=True), 3 * size),
        "convolution backward": (lambda: conv_backward(two, x, dx, weights, silu=True), 4 * size),
        "scan, both directions, gate, average": (
            lambda: scan_forward(two, delta, B, C, z, (params, params), scale=0.5),
            6 * size,
        ),
        "gate backward": (lambda: gate_backward(out, mixed, z, dz, scale=0.5, gated=True), 5 * size),
        "scan backward, both directions": (
            lambda: scan_backward(out, two, delta, B, C, (params, params), states=states),
            9 * size,
        ),
        "add + RMS norm": (lambda: norm.forward(branch, stream, gain, eps=1e-5, dtype=branch.dtype), rows * width * 12),
        "norm backward": (lambda: norm.backward(branch, stream, total, gain, inverse, eps=1e-5), rows * width * 14),
        "bidirectional mix": (lambda: mix.forward(xz, direction, direction, average=True, for_backward=True), 0),
        "bidirectional mix, backward": (
            lambda: mix.backward(out, xz, direction, direction, [*saved, mixed], average=True),
            0,
        ),
    }
    found = []
    for name, (work, moved) in works.items():
        took = milliseconds(work, calls=4)
        bound = moved / copy_rate * 1e3
        found.append(Row(name=name, cells=(took, bound or "-", f"{took / bound:.2f}" if bound else "-")))
    return found


def main() -> None:
    """Measures, prints and writes a Markdown page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    worst = check_scan()
    rate = copy_rate()
    page = f"# GPU kernels, bf16, {STATE} states\n\n{describe('cuda')}\n\n"
    page += f"Copy {rate / 1e12:.2f} TB/s. Largest relative error of the scan against float64: {worst:.1e}.\n\n"
    columns = ("forward ms", "speedup", "bound ms", "backward kernel ms", "backward ms", "speedup")
    page += (
        markdown(columns, [scan(shape, *peer) for shape, peer in SHAPES.items()]) + "\nBase, batch 128, 224 pixels:\n\n"
    )
    page += markdown(("ms", "bound ms", "× bound"), mixer_kernels(rate))
    print(page)
    if arguments.out is not None:
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
