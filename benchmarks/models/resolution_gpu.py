"""Speed and memory of Mamba-R Base and ViT-Base from 224 to 2,048 pixels on a GPU.

    PYTHONPATH=src python benchmarks/models/resolution_gpu.py --out results.json
    PYTHONPATH=src python benchmarks/models/resolution_gpu.py --from results.json --page table.md --plot plot.png

Both run under bf16 autocast with random weights, replayed from CUDA graphs, which exclude Python overhead, or with
--compile through torch.compile without graphs. ViT-Base is
that of timm with PyTorch's fused attention, with a position embedding for each size. A batch has about 73,728 patches
at every size (8 images of 1,536 pixels), or --batch images. The first command measures and writes JSON; the second
needs no GPU and writes the table and the plot.
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from mambar.bench.script import run_benchmark
from mambar.bench.table import Row, markdown

SIDES = (224, 384, 512, 768, 1024, 1280, 1536, 2048)
PATCHES = 8 * 96**2
MODELS = ("Mamba-R Base", "ViT-Base")
COLUMNS = ("tokens", "batch", "inference img/s", "peak GiB", "training img/s", "peak GiB")


def measure(sides: tuple[int, ...], images_per_batch: int | None, *, compiled: bool) -> list[dict[str, Any]]:
    """One entry per model and size; values are None if memory was exceeded."""
    import timm
    import torch
    from throughput_gpu import build, fresh, inference, training

    found = []
    for side in sides:
        batch = images_per_batch or max(1, PATCHES // (side // 16) ** 2)
        for name in MODELS:
            torch.manual_seed(0)
            if name == "Mamba-R Base":
                model = build("mambar_base_patch16_224", side)
            else:
                model = timm.create_model("vit_base_patch16_224", img_size=side).cuda()
            images = torch.randn(batch, 3, side, side, device="cuda")
            entry: dict[str, Any] = {"model": name, "side": side, "batch": batch, "compiled": compiled}
            if compiled:
                model = torch.compile(model)
            for kind, run in (("inference", inference), ("training", training)):
                try:
                    entry[kind], entry[f"{kind}_gib"] = run(model, images, captured=not compiled)
                except torch.cuda.OutOfMemoryError:
                    entry[kind] = entry[f"{kind}_gib"] = None
                fresh()
            print(entry, file=sys.stderr, flush=True)
            found.append(entry)
            del model, images
            fresh()
    return found


def crossover(found: list[dict[str, Any]], kind: str) -> str:
    """A sentence that names the sizes between which Mamba-R becomes faster than ViT."""
    faster = {}
    for side in dict.fromkeys(entry["side"] for entry in found):
        ours, theirs = (next(e[kind] for e in found if e["side"] == side and e["model"] == name) for name in MODELS)
        faster[side] = ours > theirs
    sides = list(faster)
    for before, after in pairwise(sides):
        if not faster[before] and faster[after]:
            return f"{kind}: Mamba-R becomes faster than ViT-Base between {before} and {after} pixels."
    first = "Mamba-R" if faster[sides[0]] else "ViT-Base"
    return f"{kind}: {first} is faster at every size from {sides[0]} to {sides[-1]} pixels."


def page(measured: dict[str, Any]) -> str:
    """The table and the crossovers as Markdown."""
    rows = [
        Row(
            name=f"{entry['model']}, {entry['side']} px" + (", compiled" if entry.get("compiled") else ""),
            cells=(
                (entry["side"] // 16) ** 2,
                entry["batch"],
                *(entry[name] for name in ("inference", "inference_gib", "training", "training_gib")),
            ),
        )
        for entry in measured["found"]
    ]
    crossings = "\n".join(f"* {crossover(measured['found'], kind)}" for kind in ("inference", "training"))
    return f"{measured['machine']}\n\n{markdown(COLUMNS, rows)}\n{crossings}\n"


def draw(measured: dict[str, Any], path: Path) -> None:
    """Plots inference, training and training memory per image over the image size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for name, color, mark in zip(MODELS, ("#1b6ca8", "#c8553d"), ("o", "s"), strict=True):
        mine = [entry for entry in measured["found"] if entry["model"] == name]
        sides = [entry["side"] for entry in mine]
        panels[0].plot(sides, [e["inference"] for e in mine], color=color, marker=mark, label=name)
        panels[1].plot(sides, [e["training"] for e in mine], color=color, marker=mark, label=name)
        memory = [e["training_gib"] / e["batch"] for e in mine]
        panels[2].plot(sides, memory, color=color, marker=mark, label=name)
    for panel, title in zip(
        panels, ("inference, images/s", "training, images/s", "training, GiB per image"), strict=True
    ):
        panel.set(title=title, xlabel="side of the image, pixels", xscale="log", yscale="log")
        panel.set_xticks(sides, [str(side) for side in sides], rotation=45)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, or reads an earlier measurement; writes the requested files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="image sizes in pixels")
    parser.add_argument("--batch", type=int, help="images per batch at every size")
    parser.add_argument("--compile", action="store_true", help="torch.compile instead of CUDA graphs")
    print(
        run_benchmark(
            parser, lambda given: measure(tuple(given.sides), given.batch, compiled=given.compile), page, draw
        )
    )


if __name__ == "__main__":
    main()
