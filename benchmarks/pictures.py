"""Remakes the pictures of the documentation and records how each was made.

    PYTHONPATH=src python benchmarks/pictures.py                 # all that need no GPU, in about three minutes
    PYTHONPATH=src python benchmarks/pictures.py efficiency
    PYTHONPATH=src python benchmarks/pictures.py --work DIR      # those of networks trained on a CPU too, in minutes

DIR has the photographs of clothes as `clothing/` (clothing-dataset-small, CC0) and keeps the trained networks.

docs/pictures/pictures.json has an entry for each picture: the command, commit, date and machine that made it, and the
sha256 of the file. Pictures of studies on a GPU are not remade here; their entries have the command of the study. The
script ends with code 1 if a picture has no entry, and names it.
"""

import argparse
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from mambar.bench.machine import describe
from mambar.paper.context import commit

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
PHOTOGRAPHS = ROOT / "weights" / "photographs"
# The trained pair of `weights/`, by its name in the figure.
TRAINED_PAIR = {"Vim": "vim_tiny_patch16_224.clothing", "Mamba-R": "mambar_tiny_patch16_224.clothing"}
RESOLUTION = ROOT / "benchmarks" / "results" / "2026-11-29-nvidia-h200-resolution.json"
SCAN_LENGTHS = ROOT / "benchmarks" / "results" / "2026-11-29-nvidia-h200-scan-lengths.json"


def demo(path: Path) -> None:
    """Norm maps of the two networks that `mambar demo` trains, on photographs."""
    from mambar.recipes.demo import run_demo

    with tempfile.TemporaryDirectory() as out:
        path.write_bytes((run_demo(out=Path(out) / "demo").report.parent / "token_norms.png").read_bytes())


def clothing(path: Path, work: Path) -> None:
    """Norm maps of the trained pair after the last block on photographs with and without outliers, which are framed.

    An outlier is above median + 10 MAD of the tokens of all test photographs, which are in the work directory.
    """
    import torch
    from matplotlib.patches import Rectangle

    from mambar import load, token_norms
    from mambar.analysis import MedianDeviation
    from mambar.analysis.draw.plots import new_figure, png
    from mambar.data import EvalTransform, read_image

    models = {name: load(source) for name, source in TRAINED_PAIR.items()}
    preprocessing = models["Vim"].preprocessing
    assert preprocessing is not None
    transform = EvalTransform(preprocessing=preprocessing)

    def norms_of(files: list[Path]) -> dict[str, torch.Tensor]:
        images = torch.stack([preprocessing.normalize(transform.pixels(read_image(file))) for file in files])
        return {
            name: torch.cat([token_norms(model, part, [-1])[0] for part in images.split(32)])
            for name, model in models.items()
        }

    test = norms_of(sorted((work / "clothing" / "test").rglob("*.jpg")))
    limits = {name: MedianDeviation().threshold(maps.flatten()) for name, maps in test.items()}
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))
    figure = new_figure((1.75 * len(files) + 0.6, 1.85 * 3 + 0.2))
    axes = figure.subplots(3, len(files))
    for place, file in enumerate(files):
        axes[0, place].imshow(transform.pixels(read_image(file)).permute(1, 2, 0).numpy())
        axes[0, place].set_title(file.stem, fontsize=9)
    for row, (name, maps) in zip(axes[1:], norms_of(files).items(), strict=True):
        middle = test[name].median()
        print(f"{name}: {100 * (test[name] > limits[name]).float().mean():.3f} % of the test tokens are outliers")
        for axis, norms in zip(row, maps, strict=True):
            drawn = axis.imshow((norms / middle).numpy(), vmin=0, vmax=5, interpolation="nearest")
            outliers = (norms > limits[name]).nonzero().tolist()
            for y, x in outliers:
                axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=0.8))
            axis.set_xlabel(f"largest {norms.max() / middle:.1f}, outliers {len(outliers)}", fontsize=7)
    for axis, name in zip(axes[:, 0], ("photograph", *models), strict=True):
        axis.set_ylabel(name, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(drawn, ax=axes[1:].ravel().tolist(), shrink=0.6, extend="max")
    bar.set_label("token norm / median of all test tokens", fontsize=8)
    path.write_bytes(png(figure))


def benchmark_module(benchmark: str) -> Any:
    """The module of a path below benchmarks/."""
    script = ROOT / "benchmarks" / benchmark
    sys.path.insert(0, str(script.parent))
    return importlib.import_module(script.stem)


def measured(path: Path, *, benchmark: str, numbers: Path) -> None:
    """The plot of a benchmark, a path below benchmarks/, from the numbers of an earlier measurement."""
    benchmark_module(benchmark).draw(json.loads(numbers.read_text("utf-8")), path)


def trained(work: Path, name: str, *words: str) -> None:
    """Trains the network `name` in the work directory, unless it is there."""
    if not (work / name / "result.json").is_file():
        run_mambar(work, "train", *words, "--out", name)


def run_mambar(work: Path, *words: str) -> None:
    """A command of this checkout's mambar in the work directory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "mambar", *words, "--device", "cpu"]
    subprocess.run(command, cwd=work, env=environment, check=True)


# A small network and its images; its mixer and schedule differ from page to page.
SMALL = (
    *("data=clothing", "img_size=64", "batch_size=64", "warmup_epochs=1.0", "config.patch_size=8"),
    *("config.embed_dim=96", "config.depth=6", "config.num_registers=4", "config.register_reduction=1"),
)


def clothing_run(work: Path) -> None:
    """The network of the pages on activation maps and robustness."""
    trained(work, "clothing_run", "folder", *SMALL, "epochs=8", "lr=2e-3")


def small_png(source: Path, path: Path, width: int) -> None:
    """The picture with `width` columns and 256 colors; fewer merge the lines of a chart and change photographs."""
    from PIL import Image

    with Image.open(source) as image:
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    rgb.resize((width, round(image.height * width / image.width))).quantize(256).save(path, optimize=True)


def clothing_figure(path: Path, work: Path, *, figure: str, width: int) -> None:
    """A figure of the analysis of the network trained on photographs of clothes."""
    clothing_run(work)
    if not (work / "analyzed").is_dir():
        words = ("analyze", "clothing_run", "--data", "clothing", "--layers", "5", "--probes", "", "--cam", "gradcam")
        counts = ("--num-images", "60", "--gallery", "6", "--test-time-registers", "0")
        run_mambar(work, *words, *counts, "--out", "analyzed")
    small_png(work / "analyzed" / "figures" / figure, path, width)


def pair_figure(path: Path, work: Path, *, name: str, figure: str, width: int) -> None:
    """A figure of `mambar reproduce NAME` of the trained pair on the test photographs; kept for these weights."""
    from mambar.hub.weights import TRAINED

    names = TRAINED_PAIR.values()
    out = "-".join(["pair", *(TRAINED[each].sha256[:8] for each in names)])
    if not (work / out / "small" / name).is_dir():
        words = ("reproduce", name, "--budget", "small", "--runs", ",".join(names), "data=clothing/test")
        run_mambar(work, *words, "--out", out)
    small_png(work / out / "small" / name / figure, path, width)


def study_figure(path: Path, *, figure: str) -> None:
    """A figure of `mambar reproduce table_artifacts` from the stored outcomes of the register study."""
    stored = ROOT / "docs" / "findings" / "registers"
    seeds = sorted({folder.name.rpartition("seed")[2] for folder in stored.glob("small/cells/*-seed*/")})
    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(stored, Path(work) / "runs")
        study = ("table_artifacts", "--budget", "small", "--recipe", "tiny_imagenet", "data=tiny-imagenet-200")
        run_mambar(Path(work), "reproduce", *study, "--seeds", ",".join(seeds), "--out", "runs")
        small_png(Path(work) / "runs" / "small" / "table_artifacts" / figure, path, 1000)


def objects(path: Path, work: Path) -> None:
    """Boxes that LOST finds with the trained Mamba-R in drawn scenes, and those of the objects."""
    shutil.rmtree(work / "lost", ignore_errors=True)
    scenes = ("--data", "shapes", "--num-images", "200", "--layers", "23", "--discover", "center=image")
    options = ("--probes", "", "--test-time-registers", "0", "--out", "lost")
    run_mambar(work, "analyze", TRAINED_PAIR["Mamba-R"], *scenes, *options)
    small_png(work / "lost" / "figures" / "objects-0.png", path, 900)


def corruptions(path: Path, work: Path) -> None:
    """Top-1 of that network by corruption and severity."""
    clothing_run(work)
    if not (work / "corrupted").is_dir():
        words = ("evaluate", "clothing_run", "--data", "clothing", "--split", "val")
        run_mambar(work, *words, "--corruptions", "all", "--severities", "1,3,5", "--out", "corrupted")
    small_png(work / "corrupted" / "corruptions.png", path, 820)


def frozen_features(path: Path, work: Path) -> None:
    """Test accuracy of classifiers on frozen features of the trained pair; frozen_features.json has the numbers."""
    benchmark_module("models/feature_pictures.py").frozen_features(path, work, models=TRAINED_PAIR)


def parts(path: Path, work: Path) -> None:
    """Patches of training photographs that are similar to a patch of a test photograph, for the trained Mamba-R."""
    benchmark_module("models/feature_pictures.py").parts(path, work, model=TRAINED_PAIR["Mamba-R"])


def dense_features(path: Path, work: Path) -> None:
    """Drawn scenes segmented with the frozen patch tokens of the trained Mamba-R; dense/ has the numbers."""
    shutil.rmtree(work / "dense", ignore_errors=True)
    protocols = ("--protocol", "segmentation_knn,segmentation_linear")
    scenes = (
        "--data",
        "shapes",
        *(f"data_options.{each}" for each in ("num_images=300", "num_classes=3", "img_size=224")),
    )
    run_mambar(work, "evaluate", TRAINED_PAIR["Mamba-R"], *protocols, *scenes, "--out", "dense")
    small_png(work / "dense" / "segmentation.png", path, 900)


def pretraining(path: Path, work: Path) -> None:
    """What a masked and an autoregressive network predict of the test photographs."""
    rate = ("lr=1e-3", "lr_base_size=none", "model=mambar_tiny_patch16_224")
    decoder = ("task_options.decoder_dim=96", "task_options.decoder_heads=4", "task_options.decoder_depth=3")
    trained(work, "masked", "pretrain_masked", *SMALL, "epochs=10", *rate, *decoder)
    trained(
        work, "pretrained", "pretrain_autoregressive", *SMALL, "epochs=12", *rate, *decoder, "task_options.cluster=2"
    )
    benchmark_module("models/feature_pictures.py").pretraining(path, work, runs=("masked", "pretrained"))


def detect(path: Path, work: Path) -> None:
    """The first held-out scenes of the recipe maskrcnn_shapes with what its network finds."""
    import numpy as np
    from PIL import Image

    from mambar.detection import detect, load_detector
    from mambar.training.run_data import open_run_dataset

    trained(work, "scenes", "maskrcnn_shapes")
    scenes = open_run_dataset(work / "scenes", None, "val", None, classes=None, kind="detection")
    detector = load_detector(work / "scenes")
    found = [detect(detector, scenes[index].image, threshold=0.5).picture() for index in range(4)]
    height = min(len(each) for each in found)
    gap = ((0, 0), (0, 6), (0, 0))
    sheet = np.concatenate([np.pad(each[:height], gap, constant_values=255) for each in found], 1)[:, :-6]
    Image.fromarray(sheet).quantize(64).save(path, optimize=True)


MAKERS: dict[str, Callable[[Path], None]] = {
    "demo": demo,
    "efficiency": partial(measured, benchmark="models/resolution_gpu.py", numbers=RESOLUTION),
    "registers_layers": partial(study_figure, figure="layers.png"),
    "registers_training": partial(study_figure, figure="training.png"),
    "scan_lengths": partial(measured, benchmark="ops/scan_lengths_gpu.py", numbers=SCAN_LENGTHS),
}
# Those of networks that are trained first, in a work directory.
TRAINED_MAKERS: dict[str, Callable[..., None]] = {
    "cam": partial(clothing_figure, figure="gallery-00.png", width=800),
    "clothing": clothing,
    "clothing_layers": partial(pair_figure, name="table_secondary", figure="layers.png", width=1000),
    "clothing_registers": partial(pair_figure, name="figure_register_maps", figure="maps.png", width=1000),
    "corruptions": corruptions,
    "dense_features": dense_features,
    "detect": detect,
    "frozen_features": frozen_features,
    "objects": objects,
    "parts": parts,
    "pretraining": pretraining,
}


def main() -> None:
    """Makes the named pictures, or all, and updates pictures.json beside them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help=f"pictures to make: {', '.join([*MAKERS, *TRAINED_MAKERS])}")
    parser.add_argument("--work", type=Path, help="folder of the photographs and the trained networks")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder of the pictures and of pictures.json")
    arguments = parser.parse_args()
    makers = {**MAKERS, **{name: partial(make, work=arguments.work) for name, make in TRAINED_MAKERS.items()}}
    unknown = set(arguments.names) - set(makers)
    if unknown:
        parser.error(f"no picture is called {', '.join(sorted(unknown))}; choose from {', '.join(makers)}")
    if arguments.work is None and set(arguments.names) & set(TRAINED_MAKERS):
        parser.error(f"{', '.join(TRAINED_MAKERS)} need a folder for trained networks; give --work DIR")
    entries = arguments.out / "pictures.json"
    content = json.loads(entries.read_text("utf-8")) if entries.is_file() else {}
    for name in arguments.names or (makers if arguments.work else MAKERS):
        path = arguments.out / f"{name}.png"
        makers[name](path)
        content[path.name] = {
            "command": f"python benchmarks/pictures.py {name}" + (" --work DIR" if name in TRAINED_MAKERS else ""),
            "commit": commit(),
            "date": date.today().isoformat(),
            "machine": describe("cpu"),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        entries.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n", "utf-8")
        print(path)
    without = sorted(path.name for path in arguments.out.glob("*.png") if path.name not in content)
    if without:
        sys.exit(f"no entry in {entries} says how these were made: {', '.join(without)}")


if __name__ == "__main__":
    main()
