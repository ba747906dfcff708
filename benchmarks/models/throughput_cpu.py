"""Time of Mamba-R Base on one CPU thread, relative to a roofline, a sequential loop and mambapy's scan.

    uv run python benchmarks/models/throughput_cpu.py                       # model, roofline, bf16 products
    uv run python benchmarks/models/throughput_cpu.py --peers --depth 2     # also the loop (and mambapy, if installed)

Base width (768), 224 pixels, 208 tokens, float32 unless said, `--depth` of its 24 blocks, CPU time of the process,
interleaved rounds, medians, printed as Markdown. The roofline is the time of the matrix products at the same shapes
plus the scans at the peak rate, both measured in the same run. "Products in sequence" times the products in the order
of the model, so that operands are not in the cache. A training step is forward, loss and backward.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambar.bench.machine import describe
from mambar.bench.table import Row, markdown
from mambar.bench.timing import Work, interleaved
from mambar.memory import keep_freed_memory
from mambar.models import VARIANTS, VisionMamba
from mambar.ops import use_backend
from mambar.ops.llvm.launch import roofline_states_per_second

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
from scan_cpu_llvm import sequential

DIM, INNER, STATE, RANK, TOKENS = 768, 1536, 16, 48, 208
# A block's matrix products, (inside, out): in_proj, each direction's x_proj and dt_proj, out_proj.
PRODUCTS = [(DIM, 2 * INNER), *2 * [(INNER, RANK + 2 * STATE), (RANK, INNER)], (INNER, DIM)]


def by_loop(u, delta, A, B, C, D, z, delta_bias, *, delta_softplus, reverse, backend):
    """The scan as in the reference of mamba-ssm."""
    return sequential(u, delta, A, B, C, D, z, delta_bias, reverse)


def by_mambapy(u, delta, A, B, C, D, z, delta_bias, *, delta_softplus, reverse, backend):
    """The scan by mambapy's parallel scan in plain PyTorch."""
    from mambapy.pscan import pscan

    if reverse:
        u, delta, B, C, z = (tensor.flip(1) for tensor in (u, delta, B, C, z))
    dt = F.softplus(delta + delta_bias)
    states = pscan(torch.exp(dt[..., None] * A), (dt * u)[..., None] * B[:, :, None])
    y = ((states @ C[..., None])[..., 0] + u * D) * F.silu(z)
    return y.flip(1) if reverse else y


@contextmanager
def scan_by(scan: Callable[..., Tensor] | None) -> Iterator[None]:
    """Context in which models compose the mix of plain ops with this scan; None changes nothing."""
    if scan is None:
        yield
        return
    with use_backend("reference"), mock.patch("mambar.ops.bidirectional_mix.composed.selective_scan", scan):
        yield


def forward(model: nn.Module, images: Tensor, scan: Callable[..., Tensor] | None, bf16: bool = False) -> Work:
    """Inference of a batch."""

    def work() -> None:
        with torch.no_grad(), scan_by(scan), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model.eval()(images)

    return work


def step(model: nn.Module, images: Tensor, scan: Callable[..., Tensor] | None, bf16: bool = False) -> Work:
    """Forward, loss and backward of a batch."""
    labels = torch.arange(len(images))

    def work() -> None:
        with scan_by(scan), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model.train()(images).float(), labels)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return work


def products(batch: int, *, training: bool) -> float:
    """Seconds of one block's matrix products, each at its best of five."""
    rows = batch * TOKENS
    total = 0.0
    for inside, other in PRODUCTS:
        total += _product(torch.randn(rows, inside), torch.randn(other, inside).t())
        if training:
            total += _product(torch.randn(rows, other), torch.randn(other, inside))
            total += _product(torch.randn(rows, other).t(), torch.randn(rows, inside))
    return total


def _product(left: Tensor, right: Tensor) -> float:
    out = torch.empty(left.shape[0], right.shape[1])
    return _best(lambda: torch.mm(left, right, out=out))


def _best(work: Work) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def products_in_a_row(batch: int, depth: int) -> float:
    """Seconds of all blocks' products as a forward pass has them: each on other operands than the one before it."""
    operands = [torch.randn(batch * TOKENS, inside) for inside, _ in PRODUCTS]
    weights = [[torch.randn(other, inside) for inside, other in PRODUCTS] for _ in range(depth)]

    def forward_pass() -> None:
        for block in weights:
            for operand, weight in zip(operands, block, strict=True):
                F.linear(operand, weight)

    return _best(forward_pass)


def scans(batch: int, *, training: bool) -> float:
    """Seconds of the scans of one block at the peak rate."""
    states = 2 * batch * TOKENS * INNER * STATE
    seconds = states / roofline_states_per_second()
    if training:
        seconds += states / roofline_states_per_second(backward=True)
    return seconds


def roofline_seconds(batch: int, depth: int, *, training: bool) -> float:
    """Seconds of the matrix products and scans of all blocks."""
    return depth * (products(batch, training=training) + scans(batch, training=training))


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that a forward pass saves for the backward, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model.train()(images).sum()
        del loss
    return sum(kept.values())


def parity(model: nn.Module, images: Tensor, scans: dict[str, Callable[..., Tensor]]) -> None:
    """Exits if the logits of the implementations differ."""
    with torch.no_grad():
        ours = model.eval()(images)
        for name, scan in scans.items():
            with scan_by(scan):
                error = ((model(images) - ours).abs().max() / ours.abs().max()).item()
            print(f"Parity with {name}: {error:.1e} of the largest logit")
            if error > 1e-4:
                raise SystemExit("The logits differ; nothing is timed.")


def main() -> None:
    """Checks parity, measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--depth", type=int, default=24, help="number of blocks")
    parser.add_argument(
        "--peers", action="store_true", help="also measure the sequential loop, and mambapy if installed"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="batch size of the training step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    kept = keep_freed_memory()
    print(f"{describe('cpu')}; freed memory kept: {kept}", flush=True)
    model = VisionMamba(VARIANTS["mambar_base_patch16_224"].replace(depth=options.depth))
    peers: dict[str, Callable[..., Tensor]] = {}
    if options.peers:
        peers["the sequential loop"] = by_loop
        if importlib.util.find_spec("mambapy"):
            peers["mambapy"] = by_mambapy
    parity(model, torch.randn(1, 3, 224, 224), peers)
    print(f"Saved for the backward per block at batch 8: {_saved_megabytes_per_block(model):.1f} MB\n", flush=True)
    columns = [
        "median ms",
        "× roofline",
        "× roofline, products in sequence",
        *(f"{name} ms" for name in peers),
        *(f"of {name}" for name in peers),
    ]
    rows = []
    cases = [("forward", forward, 1), ("forward", forward, 8), ("training step", step, options.batch)]
    for name, make, batch in cases:
        images = torch.randn(batch, 3, 224, 224)
        training = make is step
        works = {"ours": make(model, images, None), "bf16": make(model, images, None, True)}
        works |= {peer: make(model, images, scan) for peer, scan in peers.items()}
        roofline = roofline_seconds(batch, options.depth, training=training)
        found = interleaved(works, rounds=options.rounds)
        roofline = min(roofline, roofline_seconds(batch, options.depth, training=training))
        ours = found["ours"].median
        in_a_row = "-"
        if not training:
            there = products_in_a_row(batch, options.depth) + options.depth * scans(batch, training=False)
            in_a_row = ours / there
        slow = [found[peer].median for peer in peers]
        label = f"{name}, batch {batch}"
        rows.append(
            Row(
                name=label,
                cells=(
                    ours * 1e3,
                    ours / roofline,
                    in_a_row,
                    *(s * 1e3 for s in slow),
                    *(f"{s / ours:.1f}x" for s in slow),
                ),
            )
        )
        fast = found["bf16"].median
        blanks = ("-",) * len(peers)
        ratios = (f"{s / fast:.1f}x" for s in slow)
        rows.append(Row(name=f"{label}, bf16 products", cells=(fast * 1e3, "-", "-", *blanks, *ratios)))
    print(f"{options.depth} of 24 blocks, {options.rounds} rounds\n\n{markdown(columns, rows)}")


def _saved_megabytes_per_block(model: VisionMamba) -> float:
    images = torch.randn(8, 3, 224, 224)
    whole = saved_bytes(model, images)
    blocks, model.blocks = model.blocks, model.blocks[:-1]
    without = saved_bytes(model, images)
    model.blocks = blocks
    return (whole - without) / 1e6


if __name__ == "__main__":
    main()
