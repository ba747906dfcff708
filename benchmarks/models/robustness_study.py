"""Accuracy of trained networks after changes without training: resolution, register placement, quantization.

    python benchmarks/models/robustness_study.py --data PATH NAME=RUN,RUN,RUN NAME=RUN,RUN,RUN

Each NAME is a kind of network; each RUN is a run directory of one seed, in the same order for every kind. Top-1 is
measured on `--images` held-out images of `--data`. The table has its change in points relative to the unchanged
network, with a 95 % interval over the seeds. The last column is the change of the first kind minus that of the second.
The table is printed; `--json` writes the values.

Bits: symmetric quantization with one scale per tensor, to 2^bits - 1 levels between ± the largest magnitude. For
activations the range comes from `--calibration` held-out images. `weights` are the four projections of each mixer;
`activations` adds the inputs of in_proj and out_proj; `stream` adds the residual stream between blocks, which contains
the high-norm tokens.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

import mambar
from mambar.bench.machine import describe
from mambar.memory import keep_freed_memory
from mambar.nn.block import MambaBlock
from mambar.paper.statistics import half_width, paired
from mambar.recipes.evaluate_run import held_out_images

BATCH = 50
BITS = (8, 6, 4)
PARTS = ("weights", "activations", "stream")
PLACEMENTS = ("evenly", "spread", "begin", "middle", "end")


def top1(model: mambar.VisionMamba, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent."""
    with torch.inference_mode():
        right = sum(
            int((model(part).argmax(1) == target).sum())
            for part, target in zip(images.split(BATCH), labels.split(BATCH), strict=True)
        )
    return 100 * right / len(labels)


def run_all(model: mambar.VisionMamba, images: Tensor) -> None:
    """Runs the model on all images, for registered hooks."""
    with torch.inference_mode():
        for part in images.split(BATCH):
            model(part)


def rounded(values: Tensor, largest: Tensor, bits: int) -> Tensor:
    """The values rounded to a symmetric grid of 2^bits - 1 levels between ± `largest`, clamped to that range."""
    most = 2 ** (bits - 1) - 1
    step = largest.clamp_min(1e-12) / most
    return (values / step).round().clamp(-most, most) * step


def blocks(model: mambar.VisionMamba) -> Iterator[MambaBlock]:
    """The blocks, with their type."""
    for block in model.blocks:
        assert isinstance(block, MambaBlock)
        yield block


@contextmanager
def rounded_weights(model: mambar.VisionMamba, bits: int) -> Iterator[None]:
    """Context in which the weights of the projections are quantized to `bits`."""
    changed: list[tuple[nn.Linear, Tensor]] = []
    with torch.no_grad():
        for block in blocks(model):
            for module in block.mixer.modules():
                if isinstance(module, nn.Linear):
                    changed.append((module, module.weight.clone()))
                    module.weight.copy_(rounded(module.weight, module.weight.abs().max(), bits))
    try:
        yield
    finally:
        with torch.no_grad():
            for module, weight in changed:
                module.weight.copy_(weight)


@contextmanager
def rounded_inputs(modules: list[nn.Module], run: Callable[[], object], bits: int) -> Iterator[None]:
    """Context in which the inputs of the modules are quantized to `bits`; `run` is the calibration pass."""
    largest = [torch.zeros(()) for _ in modules]

    def observe(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            largest[index] = torch.maximum(largest[index], given[0].abs().max())

        return note

    handles = [module.register_forward_pre_hook(observe(index)) for index, module in enumerate(modules)]
    run()
    for handle in handles:
        handle.remove()
    with ExitStack() as stack:
        for module, size in zip(modules, largest, strict=True):
            hook = module.register_forward_pre_hook(lambda module, given, size=size: (rounded(given[0], size, bits),))
            stack.callback(hook.remove)
        yield


def with_bits(
    model: mambar.VisionMamba, images: Tensor, labels: Tensor, calibration: Tensor, part: str, bits: int
) -> float:
    """Top-1 with a part, and all earlier parts of `PARTS`, quantized to `bits`."""
    modules: list[nn.Module] = []
    if part != "weights":
        modules += [layer for block in blocks(model) for layer in (block.mixer.in_proj, block.mixer.out_proj)]
    if part == "stream":
        modules += [*blocks(model), model.norm]
    with rounded_weights(model, bits), rounded_inputs(modules, lambda: run_all(model, calibration), bits):
        return top1(model, images, labels)


def measured(run: Path, data: str, options: argparse.Namespace) -> dict[str, float]:
    """Top-1 of one network unchanged and with each change."""
    model = mambar.load(run)
    model.eval()
    assert model.preprocessing is not None
    side = model.preprocessing.size[0]
    images, labels = held_out_images(model, data=data, count=options.images)
    # The same images at another stride; overlap has no effect on a maximum.
    calibration = held_out_images(model, data=data, count=options.calibration)[0]
    found = {"as trained": top1(model, images, labels)}
    for size in options.sizes:
        if size != side:
            few = held_out_images(model, data=data, img_size=size, count=options.images)
            found[f"{size} pixels"] = top1(model, *few)
    trained = model.registers.placement
    for placement in PLACEMENTS:
        if placement != trained:
            model.registers.placement = placement
            found[f"registers placed {placement}"] = top1(model, images, labels)
    model.registers.placement = trained
    for bits in BITS:
        for part in PARTS:
            found[f"{bits} bits: {part}"] = with_bits(model, images, labels, calibration, part, bits)
    return found


def change(found: list[dict[str, float]], row: str) -> list[float] | None:
    """The change of top-1 per seed in a row; None if the kind has no such row."""
    return [each[row] - each["as trained"] for each in found] if all(row in each for each in found) else None


def shown(values: list[float] | None) -> str:
    """Mean and 95 % interval as text."""
    if values is None:
        return "–"
    width = half_width(values)
    mean = sum(values) / len(values)
    return f"{mean:+.2f}" if width is None else f"{mean:+.2f} ± {width:.2f}"


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """The changes as a Markdown table."""
    names = list(results)
    lines = [f"| | {' | '.join(names)} | {names[0]} minus {names[1]} |", f"|---|{'---|' * (len(names) + 1)}"]
    reached = [[each["as trained"] for each in results[name]] for name in names]
    cells = [shown(values).lstrip("+") for values in reached]
    apart = paired(*reached[:2])
    lines.append(f"| top-1 as trained, % | {' | '.join(cells)} | {'–' if apart is None else apart.text()} |")
    rows = dict.fromkeys(row for found in results.values() for each in found for row in each)
    for row in rows:
        if row != "as trained":
            changes = [change(results[name], row) for name in names]
            first, second = changes[:2]
            apart = None if first is None or second is None else paired(first, second)
            lines.append(f"| {row} | {' | '.join(map(shown, changes))} | {'–' if apart is None else apart.text()} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the table; writes the values to `--json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kinds", nargs="+", metavar="NAME=RUN,RUN,…")
    parser.add_argument("--data", required=True, help="data set of the held-out images")
    parser.add_argument("--images", type=int, default=2000, help="number of held-out images")
    parser.add_argument("--calibration", type=int, default=256, help="images for activation ranges")
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 24, 48, 64], help="image sizes in pixels")
    parser.add_argument("--json", type=Path, help="JSON file to write")
    options = parser.parse_args()
    keep_freed_memory()
    kinds = {name: runs.split(",") for name, runs in (kind.split("=", 1) for kind in options.kinds)}
    if len(kinds) < 2 or len({len(runs) for runs in kinds.values()}) != 1:
        parser.error("give at least two kinds, each with one run per seed")
    print(describe("cpu"), f"{options.images} images", sep="; ", flush=True)
    results = {name: [measured(Path(run), options.data, options) for run in runs] for name, runs in kinds.items()}
    if options.json is not None:
        options.json.write_text(json.dumps({"format_version": 1, "top1": results}, indent=1) + "\n", "utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
