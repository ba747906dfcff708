"""Throughput, peak memory, latency and long-sequence cost of whole models on a GPU under bf16 autocast.

    PYTHONPATH=src python benchmarks/models/throughput_gpu.py --out benchmarks/results/gpu-models.md

Each value is compared with that of the official Mamba-R with mamba-ssm (the peer, measured on the same GPU on
2026-11-22) and with a target. `--only base` selects cases by a part of their names; `--compile` adds torch.compile of
the whole model. The Markdown page is printed and written to --out.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambar.bench.machine import describe
from mambar.bench.table import Row, markdown
from mambar.models import VARIANTS, VisionMamba

# name: variant, image size, batch, then images per second of the peer and of the target (inference, training).
CASES: dict[str, tuple[str, int, int, tuple[float, float], tuple[float | None, float | None]]] = {
    "tiny 224 x128": ("mambar_tiny_patch16_224", 224, 128, (2832, 868), (None, 4500)),
    "small 224 x128": ("mambar_small_patch16_224", 224, 128, (2300, 588), (None, None)),
    "base 224 x128": ("mambar_base_patch16_224", 224, 128, (1186, 310), (5300, 1240)),
    "large 224 x64": ("mambar_large_patch16_224", 224, 64, (417, 107), (None, 420)),
    "base 384 x64": ("mambar_base_patch16_224", 384, 64, (374, 102), (None, 440)),
}
COLUMNS = ("inference img/s", "of peer", "target", "peak GiB", "training img/s", "of peer", "target", "peak GiB")
GIB = 2**30


def milliseconds(work: Callable[[], object], *, rounds: int = 5, calls: int = 3) -> float:
    """The median time of one call, over several calls between two stream events."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return statistics.median(times)


def build(variant: str, side: int) -> nn.Module:
    """A model with random weights; the official initialization of `dt` and `A` gives realistic decays."""
    return VisionMamba(VARIANTS[variant].replace(img_size=side)).cuda()


def inference(model: nn.Module, images: Tensor, *, captured: bool = False) -> tuple[float, float]:
    """Images per second and peak GiB; `captured` replays a CUDA graph."""
    model.eval()

    def work() -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, cache_enabled=not captured):
            model(images)

    took, peak = measure(work, captured=captured)
    return len(images) / took * 1e3, peak


def training(model: nn.Module, images: Tensor, *, captured: bool = False) -> tuple[float, float]:
    """Images per second of training steps (forward, loss, backward, fused AdamW) and peak GiB; `captured` as above."""
    model.train()
    labels = torch.randint(0, 1000, (len(images),), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True, capturable=captured)

    def work() -> None:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=not captured):
            logits = model(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    took, peak = measure(work, captured=captured)
    return len(images) / took * 1e3, peak


def measure(work: Callable[[], None], *, captured: bool) -> tuple[float, float]:
    """Milliseconds and peak GiB of a call, after two warm-up calls on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
        work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    if not captured:
        return milliseconds(work), torch.cuda.max_memory_allocated() / GIB
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return milliseconds(graph.replay), torch.cuda.max_memory_allocated() / GIB


def latency(model: nn.Module, images: Tensor) -> tuple[float, float]:
    """Milliseconds of one small batch, called from Python and replayed from a CUDA graph."""
    model.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        eager = milliseconds(lambda: model(images))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(images)
    return eager, milliseconds(graph.replay, calls=10)


def fresh() -> None:
    """Frees cached GPU memory between cases."""
    torch.cuda.empty_cache()


def models(only: str, *, compiled: bool = False, captured: bool = False) -> list[Row]:
    """One row per case.

    `compiled` uses torch.compile without graph breaks; `captured` replays the step from a CUDA graph.
    """
    rows = []
    for name, (variant, side, batch, peer, target) in CASES.items():
        if only not in name:
            continue
        torch.manual_seed(0)
        model, images = build(variant, side), torch.randn(batch, 3, side, side, device="cuda")
        run = torch.compile(model, fullgraph=True) if compiled else model
        start = time.perf_counter()
        fast, small = inference(run, images, captured=captured)
        learns, large = training(run, images, captured=captured)
        took = time.perf_counter() - start
        cells = (fast, f"{fast / peer[0]:.2f}x", target[0] or "-", small, learns, f"{learns / peer[1]:.2f}x")
        label = name + (f", compiled ({took:.0f} s in all)" if compiled else "") + (", captured" if captured else "")
        rows.append(Row(name=label, cells=(*cells, target[1] or "-", large)))
        print(label, *cells, large, file=sys.stderr, flush=True)
        del model, run, images
        fresh()
    return rows


def transformer(*, compiled: bool) -> Row:
    """One row of timm's ViT-Base."""
    import timm

    model = timm.create_model("vit_base_patch16_224").cuda()
    images = torch.randn(128, 3, 224, 224, device="cuda")
    run: Any = torch.compile(model) if compiled else model
    fast, small = inference(run, images)
    learns, large = training(run, images)
    del model, run
    fresh()
    name = "timm ViT-Base 224 x128" + (", compiled" if compiled else "")
    return Row(name=name, cells=(fast, "-", "-", small, learns, "-", "-", large))


def long_sequences(lengths: tuple[int, ...] = (208, 816, 4112, 16384), batch: int = 16) -> list[Row]:
    """Rows of Base blocks at increasing sequence length, from a CUDA graph, with nanoseconds per token."""
    from mambar.nn import MambaBlock

    torch.manual_seed(0)
    full = build("mambar_base_patch16_224", 224)
    blocks = [block for block in full.modules() if isinstance(block, MambaBlock)][:4]
    rows = []
    for length in lengths:
        tokens = torch.randn(batch, length, 768, device="cuda")

        def work(tokens: Tensor = tokens) -> None:
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                x = tokens
                for block in blocks:
                    x = block(x)

        took = measure(work, captured=True)[0] / len(blocks)
        rows.append(Row(name=f"{length} tokens", cells=(took, took * 1e6 / (batch * length))))
        fresh()
    return rows


def main() -> None:
    """Measures, prints and writes a Markdown page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="run only cases whose name contains this text")
    parser.add_argument("--compile", default=None, help="also run these cases under torch.compile (part of the name)")
    parser.add_argument("--capture", default=None, help="also run these cases from CUDA graphs (part of the name)")
    parser.add_argument("--brief", action="store_true", help="skip ViT-Base, latency and long sequences")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    rows = models(arguments.only)
    if arguments.capture is not None:
        rows += models(arguments.capture, captured=True)
    if arguments.compile is not None:
        rows += models(arguments.compile, compiled=True)
    page = f"# Whole models, bf16 autocast\n\n{describe('cuda')}\n\n"
    if not arguments.brief:
        rows.append(transformer(compiled=False))
        if arguments.compile is not None:
            rows.append(transformer(compiled=True))
    page += markdown(COLUMNS, rows)
    if not arguments.brief:
        base = build("mambar_base_patch16_224", 224)
        eager, graphed = latency(base, torch.randn(1, 3, 224, 224, device="cuda"))
        page += "\nOne image, Base 224 (peer 27.5 ms; target 2.5 ms from a graph):\n\n"
        page += markdown(("ms",), [Row(name="eager", cells=(eager,)), Row(name="CUDA graph", cells=(graphed,))])
        page += "\nA Base block in inference, batch 16, by length (target: ns per token within 10 %):\n\n"
        page += markdown(("ms per block", "ns per token"), long_sequences())
    print(page)
    if arguments.out is not None:
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
