"""Cost per token of the CUDA scan over batch size and length, in one piece and as chosen.

    PYTHONPATH=src python benchmarks/ops/scan_lengths_gpu.py --out results.json
    PYTHONPATH=src python benchmarks/ops/scan_lengths_gpu.py --from results.json --page table.md --plot plot.png

One direction of Base (1,536 channels, 16 states) in bfloat16; medians over replayed CUDA graphs. Cells of more than
2^20 tokens are not measured. The second command needs no GPU.
"""

import argparse
from pathlib import Path
from typing import Any

from mambar.bench.script import run_benchmark
from mambar.bench.table import Row, markdown

BATCHES, LENGTHS = (1, 2, 4, 8, 16, 128), (208, 1024, 4096, 16384, 65536)
KINDS = ("forward", "backward")
INNER = 1536
MAX_TOKENS = 2**20


def measure() -> list[dict[str, Any]]:
    """Nanoseconds per token and number of segments of each cell."""
    import torch
    from kernels_gpu import check_scan, milliseconds, scan_arguments

    from mambar.ops.cuda import scan

    check_scan()
    found = []
    for batch in BATCHES:
        for length in LENGTHS:
            if batch * length > MAX_TOKENS:
                continue
            u, delta, A, B, C, D, z, bias = scan_arguments(batch, length, INNER)
            params, dy = (scan.ScanParams(A=A, D=D, bias=bias),), torch.randn_like(delta)
            states = scan.empty_states(u, u.shape, directions=1, state=A.shape[1])
            scan.scan_forward(u, delta, B, C, z, params, states=states)
            forward = milliseconds(lambda a=(u, delta, B, C, z, params): scan.scan_forward(*a), calls=3, rounds=5)
            backward = milliseconds(
                lambda a=(dy, u, delta, B, C, params), states=states: scan.scan_backward(*a, states=states),
                calls=3,
                rounds=5,
            )
            tokens = batch * length
            segments = [
                scan.ceil_div(length, segment)
                for segment in (scan.forward_segment(u.shape), scan.backward_segment(u.shape, 1))
            ]
            cell = {"batch": batch, "length": length, "segments": segments}
            found.append({**cell, "forward": forward / tokens * 1e6, "backward": backward / tokens * 1e6})
    return found


def page(measured: dict[str, Any]) -> str:
    """A table per kind: ns per token, with the number of segments where sequences are cut."""
    tables = []
    for i, kind in enumerate(KINDS):
        cells = {
            (each["batch"], each["length"]): f"{each[kind]:.1f}"
            + (f" ({each['segments'][i]} segments)" if each["segments"][i] > 1 else "")
            for each in measured["found"]
        }
        rows = [
            Row(name=f"batch {batch}", cells=tuple(cells.get((batch, length), "not run") for length in LENGTHS))
            for batch in BATCHES
        ]
        tables.append(f"{kind.capitalize()}, ns per token:\n\n{markdown(tuple(map(str, LENGTHS)), rows)}")
    return f"{measured['machine']}\n\n" + "\n".join(tables)


def draw(measured: dict[str, Any], path: Path) -> None:
    """Plots the cost per token over the length, one line per batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    colors = pyplot.get_cmap("viridis")
    for panel, kind in zip(panels, KINDS, strict=True):
        for i, batch in enumerate(BATCHES):
            cells = [each for each in measured["found"] if each["batch"] == batch]
            lengths, costs = [each["length"] for each in cells], [each[kind] for each in cells]
            panel.plot(lengths, costs, marker="o", color=colors(i / len(BATCHES)), label=f"batch {batch}")
        panel.set(title=f"scan, {kind}", xlabel="tokens per image", ylabel="ns per token", xscale="log", yscale="log")
        panel.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
        panel.minorticks_off()
        ticks = (10, 20, 50, 100, 200) if kind == "forward" else (30, 50, 100, 200, 400)
        panel.set_yticks(ticks, [str(tick) for tick in ticks])
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, or reads an earlier measurement; writes the requested files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    print(run_benchmark(parser, lambda _: measure(), page, draw))


if __name__ == "__main__":
    main()
