"""mIoU of Mamba-R and Vim on procedural scenes, with a frozen linear probe and fine-tuned, over three seeds.

    python benchmarks/segmentation/shapes_study.py --out runs/shapes_study --jobs 6 --minutes 8   # 2 GPUs
    python benchmarks/segmentation/shapes_study.py --out /tmp/study --smoke           # CPU smoke test

For each backbone (Mamba-R with 12 registers; Vim, the same network with one middle register) and seed: train it to
classify scenes, then (a) freeze it and train a linear layer on its patch tokens, (b) train UPerNet and the backbone.
Finished runs are not repeated; with the same --out the study resumes. Results are study.json and study.md in --out,
rewritten after each network, and row.json of each network, rewritten after each part. With --jobs, networks train in
parallel processes, distributed over the GPUs. With --minutes, each part stops after its share of the time and is then
evaluated; the rows contain the number of epochs.
"""

import argparse
import dataclasses
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from mambar.atomic_files import write_atomically
from mambar.bench.machine import describe
from mambar.data.loading.samplers import steps_per_epoch
from mambar.recipes.run import run
from mambar.recipes.upernet_shapes import AUGMENTATION
from mambar.training.checkpoint.run_directory import read_recipe
from mambar.training.distributed.process_group import choose_device
from mambar.training.loop.signals import Stopped
from mambar.training.metrics_log import read_metrics
from mambar.training.recipe import Recipe, Stage

SIDE = 128
BODY = {"patch_size": 8, "embed_dim": 128, "depth": 8}
BACKBONES = {
    "Mamba-R, 12 registers": ("mambar_tiny_patch16_224", {**BODY, "num_registers": 12, "register_reduction": 4}),
    "Vim, 1 middle register": ("vim_tiny_patch16_224", BODY),
}
SCENES = {"img_size": SIDE, "num_images": 20_000, "background": "mixed", "clutter": 0.3}
SHARED = {
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "save_every": None,
    "keep_checkpoints": 1,
}
CLASSIFY = Stage(
    img_size=SIDE,
    epochs=10,
    batch_size=128,
    lr=1e-3,
    min_lr=1e-5,
    warmup_epochs=1.0,
    weight_decay=0.05,
    clip_grad=1.0,
    train_crop="shift",
    crop_padding=8,
    drop_path_rate=0.05,
)
SEGMENT = Stage(
    img_size=SIDE,
    epochs=4,
    batch_size=64,
    lr=5e-4,
    min_lr=0.0,
    warmup_steps=200,
    schedule="linear",
    weight_decay=0.01,
    decay_groups="corrected",
    clip_grad=1.0,
    drop_path_rate=0.05,
)
# The share of the minutes after which each part stops training; measuring it takes some seconds more.
ENDS = {"study_classify": 0.42, "study_frozen": 0.58, "study_fine_tuned": 0.92}
MEASURED = {"study_classify": ("top1",)}
OF_MASKS = ("miou", "pixel_accuracy", "boundary_f")


def classifier(name: str, seed: int, *, smoke: bool) -> Recipe:
    """Training the backbone to name the largest object."""
    model, config = BACKBONES[name]
    recipe = Recipe(
        name="study_classify",
        model=model,
        config=config,
        data="shapes",
        data_options=SCENES,
        stages=(CLASSIFY,),
        seed=seed,
        eval_every=100,
        **SHARED,
    )
    return recipe.replace(epochs=1, batch_size=16, **{"data_options.num_images": 32}) if smoke else recipe


def segmenter(name: str, seed: int, backbone: Path, *, frozen: bool, smoke: bool) -> Recipe:
    """The frozen probe, or UPerNet with everything learning, from a trained backbone."""
    model, config = BACKBONES[name]
    options = {**AUGMENTATION, "eval_crop": SIDE, "eval_stride": SIDE, "channels": 128, "aux_channels": 64}
    stage = dataclasses.replace(SEGMENT, start_from=str(backbone))
    if frozen:
        options = {**options, "decoder": "linear", "aux_channels": 0}
        stage = dataclasses.replace(stage, freeze_backbone=True, drop_path_rate=0.0, epochs=2, lr=2e-3)
    recipe = Recipe(
        name="study_frozen" if frozen else "study_fine_tuned",
        model=model,
        task="segmentation",
        task_options=options,
        config=config,
        data="shapes",
        data_options={**SCENES, "val_limit": 2_000},
        stages=(stage,),
        seed=seed,
        eval_every=100,
        **SHARED,
    )
    changes = {"data_options.num_images": 16, "data_options.val_limit": 4}
    return recipe.replace(epochs=1, batch_size=8, **changes) if smoke else recipe


def finished(recipe: Recipe, out: Path, given: argparse.Namespace) -> dict[str, float]:
    """The metrics of a run and the epochs it made; one that is there already is resumed or read."""
    if (out / "result.json").is_file():
        # It may have ended early; its own recipe applies.
        recipe = read_recipe(out)
    until = None if given.until is None else given.until - 60 * given.minutes * (1 - ENDS[recipe.name])
    options = {"out": out, "device": given.device, "num_workers": given.workers}
    try:
        with stopped_at(until):
            result = run(recipe, resume=(out / "recipe.json").exists(), **options)
    except Stopped as stopped:
        if until is None or time.time() < until:
            raise
        result = run(recipe.replace(max_steps=stopped.step), resume=True, **options)
    step = [row["step"] for row in read_metrics(out / "metrics.jsonl") if row["kind"] == "evaluation"][-1]
    images, stage = recipe.data_options["num_images"], recipe.stages[0]
    epochs = step / steps_per_epoch(images, batch_size=stage.batch_size, repeats=stage.aug_repeats)
    names = MEASURED.get(recipe.name, OF_MASKS)
    return {"epochs": round(epochs, 3), **{name: result.metrics[name] for name in names}}


@contextmanager
def stopped_at(until: float | None) -> Iterator[None]:
    """Asks the run inside to save and stop, by SIGUSR1, once the clock (seconds since 1970) says `until`."""
    # Without a run that handles it, the signal is ignored.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    over = threading.Event()

    def watch() -> None:
        if until is None or over.wait(max(0.0, until - time.time())):
            return
        while not over.wait(1.0):
            os.kill(os.getpid(), signal.SIGUSR1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of runs and results")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=1, help="networks trained in parallel")
    parser.add_argument("--only", nargs=2, metavar=("BACKBONE", "SEED"), help="train one network and write no table")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="time limit of the whole study, with --jobs for all networks")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="a few images; the results are meaningless")
    given = parser.parse_args()
    if given.minutes is not None and given.until is None:
        given.until = time.time() + 60 * given.minutes
    if given.only:
        train_network(given.only[0], int(given.only[1]), given)
        return
    work = [(name, seed) for seed in range(given.seeds) for name in BACKBONES]
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(given.jobs):
        slots.put(slot)
    writing = threading.Lock()

    def one(item: tuple[str, int]) -> str | None:
        slot = slots.get()
        try:
            failed = train_apart(*item, slot, given)
        finally:
            slots.put(slot)
        with writing:
            write(
                given.out, finished_rows(given), smoke=given.smoke, machine=describe(choose_device(given.device).type)
            )
        return failed

    with ThreadPoolExecutor(given.jobs) as pool:
        failures = [text for text in pool.map(one, work) if text]
    print((given.out / "study.md").read_text("utf-8"))
    if failures:
        sys.exit("\n".join(failures))


def directory_of(name: str, seed: int, out: Path) -> Path:
    """The directory of the runs of one network."""
    return out / f"{name.split(',')[0].lower()}-{seed}"


def train_network(name: str, seed: int, given: argparse.Namespace) -> None:
    """Classifier, frozen probe and fine-tuned segmenter of one network; row.json holds what came out so far."""
    place = directory_of(name, seed, given.out)
    place.mkdir(parents=True, exist_ok=True)
    row: dict = {"backbone": name, "seed": seed, "smoke": given.smoke}
    parts = [(classifier(name, seed, smoke=given.smoke), place / "classify")]
    for frozen in (True, False):
        recipe = segmenter(name, seed, place / "classify", frozen=frozen, smoke=given.smoke)
        parts.append((recipe, place / recipe.name))
    for recipe, out in parts:
        row[recipe.name] = finished(recipe, out, given)
        # Atomic, because other processes can read it at any time.
        write_atomically(place / "row.json", (json.dumps(row) + "\n").encode())
        print(json.dumps(row), flush=True)


def train_apart(name: str, seed: int, slot: int, given: argparse.Namespace) -> str | None:
    """The same in a process of its own, on the GPU that the slot belongs to; gives what went wrong."""
    place = directory_of(name, seed, given.out)
    place.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if choose_device(given.device).type == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
    command = [sys.executable, __file__, "--out", str(given.out), "--only", name, str(seed)]
    command += ["--device", given.device, "--workers", str(given.workers), *(["--smoke"] if given.smoke else [])]
    if given.minutes is not None:
        command += ["--minutes", str(given.minutes), "--until", str(given.until)]
    with (place / "log.txt").open("ab") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode
    return f"{name}, seed {seed}: exit code {code}, see {place / 'log.txt'}" if code else None


def finished_rows(given: argparse.Namespace) -> list[dict]:
    """The rows of the networks, each as far as it came."""
    places = [directory_of(name, seed, given.out) / "row.json" for seed in range(given.seeds) for name in BACKBONES]
    return [json.loads(path.read_text("utf-8")) for path in places if path.is_file()]


def write(out: Path, rows: list[dict], *, smoke: bool, machine: str) -> None:
    """study.json with every run, study.md with mean and range over seeds."""
    content = {"format_version": 1, "smoke": smoke, "machine": machine, "scenes": SCENES, "runs": rows}
    (out / "study.json").write_text(json.dumps(content, indent=1, default=str) + "\n", "utf-8")
    columns = {
        "top-1": ("study_classify", "top1"),
        "frozen probe mIoU": ("study_frozen", "miou"),
        "fine-tuned mIoU": ("study_fine_tuned", "miou"),
        "fine-tuned boundary F": ("study_fine_tuned", "boundary_f"),
    }
    lines = [
        "| backbone | " + " | ".join([*columns, "epochs"]) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name in BACKBONES:
        mine = [row for row in rows if row["backbone"] == name]
        cells = [spread([row[kind][number] for row in mine if kind in row]) for kind, number in columns.values()]
        epochs = (sorted({row[kind]["epochs"] for row in mine if kind in row}) for kind in ENDS)
        made = " + ".join(" or ".join(f"{number:g}" for number in numbers) or "0" for numbers in epochs)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {made} |")
    note = "\nSmoke run: the numbers are meaningless.\n" if smoke else ""
    (out / "study.md").write_text("\n".join(lines) + "\n" + note, "utf-8")


def spread(values: list[float]) -> str:
    """Mean, range and number of values, in per cent."""
    if not values:
        return "*not run*"
    return f"{statistics.fmean(values):.2%} ({min(values):.2%} to {max(values):.2%}, n = {len(values)})"


if __name__ == "__main__":
    main()
