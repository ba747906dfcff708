"""Training throughput and scaling from one to several GPUs, with `mambar train` on data in the layout of ImageNet.

    PYTHONPATH=src python benchmarks/training/scaling.py --out scaling.md        # two GPUs, about three minutes
    PYTHONPATH=src python benchmarks/training/scaling.py --processes 1 --cases base_224 large_224 base_384 tiny_224
    PYTHONPATH=src python benchmarks/training/scaling.py --device cpu --smoke    # smoke test

Generates JPEG scenes with the usual size and the class ids of ImageNet, packs them with `mambar pack`, and trains
from the shards with the recipe's second stage, by default of Mamba-R Base at 224 pixels, 128 images per GPU, bf16,
`parallel=ddp`, EMA and augmentations as published. `--plain` adds runs with `cuda_graphs=false`. The first --warm
steps are not counted. The step time is that in the run's log, from one result to the next. Finally all three stages of
the recipe run from the folder on all GPUs, for --short steps each. The labels are arbitrary, and the accuracy is not
reported. The Markdown page is printed and written to --out.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mambar

SIDES = (375, 500)
# Scenes that are drawn; further files are links to them.
NUM_SCENES = 2048
GOAL = "1.95x"


@dataclass(frozen=True)
class Case:
    """A recipe at an image size, with images per GPU and the target on one H200 in images per second."""

    recipe: str
    img_size: int
    per_gpu: int
    target: int


CASES = {
    "base_224": Case("mambar_base", 224, 128, 1150),
    "large_224": Case("mambar_large", 224, 64, 395),
    "base_384": Case("mambar_base", 384, 64, 410),
    "tiny_224": Case("mambar_tiny", 224, 256, 3700),
}
COLUMNS = (
    *("images/s, median step", "target", "all counted steps", "a GPU", "peak GiB", "scaling", "goal", "first step, s"),
    "whole command, s",
)
# A network and steps that two CPU cores finish in seconds.
TINY = {"patch_size": 16, "embed_dim": 16, "depth": 1, "num_registers": 2, "register_reduction": 2, "d_state": 4}


class Failed(Exception):
    """A command that failed or exceeded its time limit."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Result of a run: its rows of metrics.jsonl, and the duration of the command in seconds."""

    rows: list[dict[str, Any]]
    seconds: float


# Data


def draw_one(folder: Path, sides: tuple[int, int], ids: tuple[str, ...], split: str, count: int, number: int) -> None:
    """One scene as a JPEG under the class id that its number falls on."""
    from PIL import Image

    from mambar.data.synthetic.shapes import Shapes

    sample = Shapes(split=split, img_size=sides, num_images=count)[number]
    own = ids[number % len(ids)]
    path = folder / split / own / f"{own}_{number}.JPEG"
    Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(path, quality=90)
    for other in range(number + NUM_SCENES, count, NUM_SCENES):
        own = ids[other % len(ids)]
        (folder / split / own / f"{own}_{other}.JPEG").hardlink_to(path)


def draw(folder: Path, *, sides: tuple[int, int], classes: int, images: int, jobs: int) -> None:
    """Both splits: `images` to train, one a class to evaluate."""
    from timm.data.imagenet_info import ImageNetInfo

    ids = tuple(ImageNetInfo().label_names()[:classes])
    for split in ("train", "val"):
        for own in ids:
            (folder / split / own).mkdir(parents=True)
    with ProcessPoolExecutor(jobs) as pool:
        for split, count in (("train", images), ("val", classes)):
            work = partial(draw_one, folder, sides, ids, split, count)
            drawn = min(count, NUM_SCENES)
            for _ in pool.map(work, range(drawn), chunksize=max(1, min(64, drawn // jobs))):
                pass


def first_weights(out: Path, recipe: str, classes: int, config: dict[str, Any]) -> None:
    """Fresh weights of the recipe's model, for a stage that starts in the middle."""
    from mambar.hub.create import create_model
    from mambar.hub.files import save_model

    name = f"{recipe}_patch16_224"
    if out.exists():
        return
    out.mkdir()
    save_model(out, create_model(name, num_classes=classes, **config), name=name)


# Commands


def mambar_command(*arguments: str, log: Path, limit: float) -> float:
    """Runs `mambar …` in a process of its own; its seconds. Failed with the end of what it said, otherwise."""
    path = os.pathsep.join([str(Path(mambar.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    tell(f"mambar {' '.join(arguments)}")
    started = time.perf_counter()
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "mambar", *arguments],
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            code: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                end(child)
    seconds = time.perf_counter() - started
    for line in log.read_text("utf-8", errors="replace").splitlines():
        if "data loader" in line or "CUDA graph" in line:
            tell(line)
    tell(f"  {seconds:.1f} s, " + ("ended by force" if code is None else f"exit code {code}"))
    if code != 0:
        said = log.read_text("utf-8", errors="replace").splitlines()[-40:]
        why = f"had not ended after {limit:.0f} s" if code is None else f"ended with {code}"
        raise Failed("\n".join([f"mambar {' '.join(arguments)} {why}:", *said]))
    return seconds


def end(child: subprocess.Popen[bytes]) -> None:
    """Asks a command to stop, then ends it with all that it started."""
    started = descendants(child.pid)
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)
    for pid in (child.pid, *started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


def descendants(pid: int) -> list[int]:
    """The processes below one, which may be in sessions of their own."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        # Gone between the listing and now.
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text("utf-8").rpartition(")")[2].split()[1])
    below, found = [pid], []
    while below:
        below = [child for child, parent in parents.items() if parent in below]
        found += below
    return found


def trained(
    place: Path, name: str, recipe: str, data: Path, fields: list[str], *, processes: int, limit: float
) -> Finished:
    """Runs `mambar train RECIPE` and reads what it logged."""
    from mambar.training.metrics_log import read_metrics

    out = place / name
    command = ["train", recipe, f"data={data}", f"out={out}", "parallel=ddp", "log_every=1", *fields]
    command += ["--processes", str(processes)]
    seconds = mambar_command(*command, log=place / f"{name}.log", limit=limit)
    return Finished(
        rows=[row for row in read_metrics(out / "metrics.jsonl") if row["kind"] == "training"], seconds=seconds
    )


def measured_stage(recipe: str, start: Path) -> tuple[int, list[str]]:
    """The index of the stage that is run, and the fields that make it the recipe's stage at 224 pixels.

    With three stages it is the last one, alone, with the fields of the second.
    """
    from mambar.recipes.index import get_recipe

    stages = [dataclasses.asdict(stage) for stage in get_recipe(recipe).stages]
    if len(stages) == 1:
        return 0, []
    _, second, last = stages
    changed = [name for name in second if second[name] != last[name] and name != "batch_size"]
    return 2, [*(f"stages.2.{name}={second[name]}" for name in changed), "stage=2", f"stages.2.start_from={start}"]


# Measurements


def throughput(rows: list[dict[str, Any]], images: int, warm: int) -> tuple[float, float]:
    """Images a second of the median step, and of all steps together, after the first `warm` ones."""
    speeds = [row["images_per_second"] for row in rows[warm:]]
    if not speeds:
        raise Failed(f"{len(rows)} steps were logged, {warm} of them to warm up: nothing is left to measure.")
    return statistics.median(speeds), images * len(speeds) / sum(images / speed for speed in speeds)


def tell(text: str) -> None:
    """A line of progress."""
    print(f"[{time.perf_counter() - START:6.1f} s] {text}", file=sys.stderr, flush=True)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; --smoke makes everything small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a tiny network and a few steps")
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1, 2],
        help="process counts, one process per GPU; the first is the baseline",
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["base_224"], help="what to train")
    parser.add_argument("--plain", action="store_true", help="each run also with cuda_graphs=false")
    parser.add_argument("--steps", type=int, default=80, help="steps of each measured run")
    parser.add_argument("--warm", type=int, default=20, help="first steps of each run, not counted")
    parser.add_argument("--short", type=int, default=3, help="steps per stage of the last run; 0 skips it")
    parser.add_argument("--workers", type=int, help="loader processes per process; default: as many as the cores allow")
    parser.add_argument("--limit", type=float, default=150, help="time limit per command in seconds")
    parser.add_argument("--place", type=Path, help="directory for temporary data and runs; needs 12 GB")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args(arguments)
    most = max(options.processes)
    options.cases = {name: CASES[name] for name in options.cases}
    options.sides, options.classes, options.config = SIDES, 1000, {}
    options.small = []
    if options.smoke:
        options.cases = {
            name: dataclasses.replace(case, img_size=32, per_gpu=4) for name, case in options.cases.items()
        }
        options.sides, options.classes, options.config = (48, 64), 4, TINY
        options.steps, options.warm, options.short = 6, 2, min(options.short, 2)
        options.small = [f"config.{name}={value}" for name, value in TINY.items()]
    if not 0 <= options.warm < options.steps:
        parser.error(f"--warm {options.warm} leaves none of --steps {options.steps} to measure")
    if options.workers is None:
        options.workers = max(1, (os.cpu_count() or 1) // most - 2)
    # One epoch, whole rounds of repeated augmentation, and no less than the batches of the unchanged stages.
    largest = max(case.per_gpu for case in options.cases.values())
    options.images = max(-(-options.steps * largest * most // 256) * 256, 4 * largest * 8)
    return options


def prepare(place: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """The folder and the shards packed from it."""
    folder, shards = place / "folder", place / "shards"
    tell(f"drawing {options.images:,} images of {options.sides[1]} x {options.sides[0]} pixels")
    draw(folder, sides=options.sides, classes=options.classes, images=options.images, jobs=max(1, os.cpu_count() or 1))
    mambar_command("pack", str(folder), str(shards), log=place / "pack.log", limit=options.limit)
    return folder, shards


def one_stage(
    place: Path, shards: Path, name: str, processes: int, options: argparse.Namespace, *, graphs: bool
) -> Finished:
    """The measured stage of a case on so many processes."""
    case, start = options.cases[name], place / f"start-{name}"
    first_weights(start, case.recipe, options.classes, options.config)
    stage, fields = measured_stage(case.recipe, start)
    fields += [
        *(f"stages.{stage}.max_steps={options.steps}", f"stages.{stage}.batch_size={case.per_gpu * processes}"),
        *(f"stages.{stage}.img_size={case.img_size}", f"num_shards={processes}", "eval_every=1000"),
        f"cuda_graphs={str(graphs).lower()}",
        *(f"device={options.device}", f"--num-workers={options.workers}", *options.small),
    ]
    if options.device == "cuda":
        fields.append("precision=bf16")
    label = f"{name}-{processes}" + ("" if graphs else "-plain")
    return trained(place, label, case.recipe, shards, fields, processes=processes, limit=options.limit)


def three_stages(place: Path, folder: Path, processes: int, options: argparse.Namespace) -> Finished:
    """All stages of the first case, a few steps each, from the folder."""
    case = next(iter(options.cases.values()))
    fields = [f"device={options.device}", f"--num-workers={options.workers}", "eval_every=1000", *options.small]
    for stage in range(3):
        fields.append(f"stages.{stage}.max_steps={options.short}")
        if options.smoke:
            fields += [f"stages.{stage}.img_size=32", f"stages.{stage}.batch_size={case.per_gpu * 8}"]
    return trained(place, "stages", case.recipe, folder, fields, processes=processes, limit=options.limit)


# A case, a number of processes, and whether with CUDA graphs.
Key = tuple[str, int, bool]


def rows_of(found: dict[Key, Finished], keys: list[Key], options: argparse.Namespace) -> list[Any]:
    """One row a run; what failed is *not run*. Scaling is relative to the first number of processes of the case."""
    from mambar.bench.table import Row

    rows = []
    kind = "GPU" if options.device == "cuda" else "process"
    medians = {
        key: throughput(run.rows, options.cases[key[0]].per_gpu * key[1], options.warm)[0] for key, run in found.items()
    }
    for key in keys:
        name, processes, graphs = key
        plural = "" if processes == 1 else "s" if kind == "GPU" else "es"
        label = f"{name}, {processes} {kind}{plural}" + ("" if graphs else ", plain")
        if key not in found:
            rows.append(Row(name=label))
            continue
        run, case = found[key], options.cases[name]
        base = (name, options.processes[0], graphs)
        scaling = f"{medians[key] / medians[base]:.2f}x" if base in medians else None
        goal = GOAL if (options.processes[0], processes) == (1, 2) and not options.smoke else "-"
        peak = max(row["memory_gib"] for row in run.rows)
        whole = throughput(run.rows, case.per_gpu * processes, options.warm)[1]
        first = case.per_gpu * processes / run.rows[0]["images_per_second"]
        target = "-" if options.smoke else case.target * processes
        cells = (medians[key], target, whole, medians[key] / processes, peak, scaling, goal, first, run.seconds)
        rows.append(Row(name=label, cells=cells))
    return rows


def page(found: dict[Key, Finished], keys: list[Key], stages: Finished | None, options: argparse.Namespace) -> str:
    """The Markdown page."""
    import torch

    from mambar.bench.machine import describe
    from mambar.bench.table import markdown

    what = "tiny networks (smoke)" if options.smoke else "Mamba-R, bf16"
    lines = [f"# Training of {what}, from tar shards of ImageNet's layout", "", describe(options.device)]
    if options.device == "cuda" and torch.cuda.device_count() > 1:
        direct = torch.cuda.can_device_access_peer(0, 1)
        lines.append(
            f"{torch.cuda.device_count()} GPUs, which {'reach' if direct else 'do not reach'} each other directly"
        )
    batches = ", ".join(f"{name} {case.per_gpu}" for name, case in options.cases.items())
    lines += [
        "",
        f"Images a GPU and step: {batches}; steps {options.warm + 1} to {options.steps}; {options.workers} "
        f"loader processes a GPU on {os.cpu_count()} cores; `parallel=ddp`.",
        "",
        markdown(COLUMNS, rows_of(found, keys, options)),
    ]
    if stages is not None:
        losses = [row["loss"] for row in stages.rows]
        steps = [sum(row["stage"] == stage for row in stages.rows) for stage in range(3)]
        lines.append(
            f"The recipe's three stages from the folder on {max(options.processes)} processes: "
            f"{steps[0]} + {steps[1]} + {steps[2]} steps, loss {losses[0]:.3f} at the first and {losses[-1]:.3f} at "
            f"the last, {stages.seconds:.0f} s in all."
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measures and prints; returns 1 if a command failed."""
    options = options_of()
    found: dict[Key, Finished] = {}
    stages: Finished | None = None
    failures: list[str] = []
    kinds = (True, False) if options.plain else (True,)
    keys = [(name, count, graphs) for name in options.cases for count in options.processes for graphs in kinds]
    with tempfile.TemporaryDirectory(dir=options.place) as temporary:
        place = Path(temporary)
        try:
            folder, shards = prepare(place, options)
            for name, count, graphs in keys:
                try:
                    found[name, count, graphs] = one_stage(place, shards, name, count, options, graphs=graphs)
                except Failed as failure:
                    failures.append(str(failure))
            if options.short:
                stages = three_stages(place, folder, max(options.processes), options)
        except Failed as failure:
            failures.append(str(failure))
    for text in failures:
        print(text, "\n", file=sys.stderr)
    text = page(found, keys, stages, options)
    tell("done")
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    return 1 if failures else 0


START = time.perf_counter()

if __name__ == "__main__":
    sys.exit(main())
