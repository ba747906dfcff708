"""Pictures of frozen features and of pre-training, on photographs of clothes; benchmarks/pictures.py calls them.

    PYTHONPATH=src python benchmarks/pictures.py frozen_features parts --work DIR    # after weights/ has changed

DIR has the photographs as `clothing/` (clothing-dataset-small, CC0).
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from mambar import load
from mambar.analysis import open_model
from mambar.analysis.draw.plots import SERIES, new_figure, png, styled
from mambar.analysis.measure.probes import wilson_interval
from mambar.data import EvalTransform, Subset, evaluation_batches, open_dataset, read_image
from mambar.evaluation.frozen_features import nearest_neighbors
from mambar.pretraining.pixel_report import predicted_images
from mambar.recipes.frozen_features import FrozenResult, evaluate_frozen_features
from mambar.training.checkpoint.run_directory import read_recipe
from mambar.training.checkpoint.store import CheckpointStore
from mambar.training.task_registry import task_class

PHOTOGRAPHS = sorted((Path(__file__).parents[2] / "weights" / "photographs").glob("*.jpg"))
PROTOCOLS = {"knn": "k nearest neighbors, k = 20", "logistic": "logistic regression", "linear": "linear probe"}
NUM_NEIGHBORS = 20
# The patch of each photograph that is searched: row and column as a fraction of the image.
PARTS = {"dress": (0.22, 0.5), "hat": (0.45, 0.5), "outwear": (0.16, 0.5), "shoes": (0.4, 0.25), "t-shirt": (0.36, 0.1)}


def frozen_features(path: Path, work: Path, *, models: Mapping[str, str]) -> None:
    """Test accuracy of classifiers on frozen features, by feature; frozen_features.json in `work` has the numbers."""
    results = {}
    for name, source in models.items():
        own = ("token",) if name == "Vim" else ("registers", "register_mean")
        results[name] = evaluate_frozen_features(
            source,
            protocols=list(PROTOCOLS),
            features=[*own, "avg", "register_mean_avg"],
            data=str(work / "clothing"),
            split="test",
            progress=lambda part, done, total: print(f"{part}: {done:,} of {total:,} images"),
        )
    numbers = {name: result.to_dict() for name, result in results.items() if result is not None}
    (work / "frozen_features.json").write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")
    path.write_bytes(png(_accuracy_chart({name: result for name, result in results.items() if result is not None})))


@styled
def _accuracy_chart(results: Mapping[str, FrozenResult]) -> Any:
    """One row for each feature, one mark for each protocol with its 95 % Wilson interval."""
    figure = new_figure((7.2, 4.4))
    axes, names = figure.add_subplot(), []
    for model, result in results.items():
        first = len(names)
        shown = [each for each in result.scores if each.protocol != "knn" or each.setting == NUM_NEIGHBORS]
        features = list(dict.fromkeys(each.features for each in shown))
        names += [f"{model}: {feature}" for feature in features]
        for place, (protocol, title) in enumerate(PROTOCOLS.items()):
            scores = [each for each in shown if each.protocol == protocol]
            tops = 100 * np.array([each.top1 for each in scores])
            ends = [wilson_interval(round(each.top1 * each.count), each.count) for each in scores]
            widths = np.abs(100 * np.array(ends).T - tops)
            axes.errorbar(
                tops,
                [first + features.index(each.features) + 0.22 * (place - 1) for each in scores],
                xerr=widths,
                fmt="os^"[place],
                color=SERIES[place],
                markersize=5,
                elinewidth=1,
                label=title if not first else None,
            )
        if result.top1 is not None:
            rows = (first - 0.45, len(names) - 0.55)
            label = None if first else "own classifier"
            axes.plot([100 * result.top1] * 2, rows, color=SERIES[-1], linestyle="dashed", label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    count = next(iter(results.values())).scores[0].count
    axes.set_xlabel(f"top-1 in %, {count} test photographs; bars: 95 % intervals")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4, columnspacing=1, handletextpad=0.3)
    return figure


def parts(path: Path, work: Path, *, model: str, stride: int = 6, num_shown: int = 4) -> None:
    """One patch of each photograph, and the most similar patches of every `stride`-th training photograph."""
    from matplotlib.patches import Rectangle

    analyzed = open_model(model)
    data = open_dataset(str(work / "clothing"), "train")
    data = Subset(data, range(0, len(data), stride), name="clothing")
    with torch.inference_mode():

        def tokens(images: torch.Tensor) -> torch.Tensor:
            return analyzed.model.tokens(images, [-1], tensor="normed")[0].patches

        batches = evaluation_batches(data, analyzed.preprocess, batch_size=16)
        patches = torch.cat([tokens(batch.images) for batch in batches])
        photographs = [read_image(file) for file in PHOTOGRAPHS]
        queries = tokens(torch.stack([analyzed.preprocess(image) for image in photographs]))
    (rows, cols), size = analyzed.grid, analyzed.model.patch_size
    places = [int(row * rows) * cols + int(col * cols) for row, col in (PARTS[file.stem] for file in PHOTOGRAPHS)]
    vectors = queries[torch.arange(len(places)), torch.tensor(places)]
    block = (patches.flatten(0, 1), torch.arange(patches.shape[0] * rows * cols))
    similarity, owners = nearest_neighbors(vectors, [block], k=1000)
    figure = new_figure((1.1 * (num_shown + 1), 1.24 * len(places)))
    axes = figure.subplots(len(places), num_shown + 1)
    for line, file in enumerate(PHOTOGRAPHS):
        # The most similar patch of each image.
        best: dict[int, tuple[int, float]] = {}
        for owner, value in zip(owners[line].tolist(), similarity[line].tolist(), strict=True):
            best.setdefault(owner // (rows * cols), (owner % (rows * cols), value))
        shown = [(photographs[line], places[line], file.stem)]
        for image, (place, value) in list(best.items())[:num_shown]:
            sample = data[image]
            shown.append((sample.image, place, f"{data.classes[sample.label]}, {value:.2f}"))
        for axis, (image, place, title) in zip(axes[line], shown, strict=True):
            axis.imshow(analyzed.pixels(image).permute(1, 2, 0).numpy())
            # Around the patch, two pixels away from it.
            corner = (place % cols * size - 2.5, place // cols * size - 2.5)
            for width, color in ((3, "white"), (1.5, "#D00000")):
                axis.add_patch(Rectangle(corner, size + 4, size + 4, fill=False, edgecolor=color, linewidth=width))
            axis.set(xticks=[], yticks=[])
            axis.set_title(title, fontsize=8)
    path.write_bytes(_quantized(png(figure)))


def _quantized(data: bytes) -> bytes:
    """The PNG file with 256 colors."""
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def pretraining(path: Path, work: Path, *, runs: Sequence[str]) -> None:
    """What the networks of the runs in `work`, with their decoders, predict of the photographs."""
    pictures: dict[str, UInt8[np.ndarray, "batch channels rows cols"]] = {}
    for run in runs:
        recipe = read_recipe(work / run)
        task = task_class(recipe.task)(recipe, recipe.stages[-1], classes=())
        network = task.build_model(load(work / run))
        checkpoint = CheckpointStore(work / run / "checkpoints").load()
        assert checkpoint is not None
        network.load_state_dict(checkpoint.tensors_of("model"))
        crop = EvalTransform(preprocessing=task.preprocessing)
        images = torch.stack([task.preprocessing.normalize(crop.pixels(read_image(file))) for file in PHOTOGRAPHS])
        shown = predicted_images(network, images, task.preprocessing)
        pictures["photograph"] = shown["image"]
        # One cluster is not predicted by an autoregressive network; its prediction shows it as it is.
        if recipe.task == "masked":
            pictures["visible patches"] = shown["not predicted"]
        pictures[f"{recipe.task}\nprediction"] = shown["prediction"]
    figure = new_figure((1.3 * len(PHOTOGRAPHS) + 0.4, 1.3 * len(pictures)))
    axes = figure.subplots(len(pictures), len(PHOTOGRAPHS))
    for line, (name, values) in enumerate(pictures.items()):
        axes[line, 0].set_ylabel(name, fontsize=8)
        for axis, image in zip(axes[line], values, strict=True):
            axis.imshow(np.moveaxis(image, 0, -1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    path.write_bytes(_quantized(png(figure)))
