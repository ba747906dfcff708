"""Analysis of one or two models into a directory with report, figures and numbers (`mambar analyze`)."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mambar.analysis.analyze_model import ProgressCallback, analyze_model
from mambar.analysis.analyzed_model import AnalyzedModel, open_model
from mambar.analysis.draw.analysis_report import write_analysis
from mambar.analysis.figure_label import size_text
from mambar.analysis.images import NamedImages, builtin_images, images_from_paths, sample_gallery
from mambar.analysis.numbers import Analysis
from mambar.analysis.options import AnalysisOptions
from mambar.data import ImageDataset
from mambar.data.registry import open_evaluation_dataset
from mambar.deprecated import LOADER_ARGUMENTS, accept_old_names
from mambar.errors import InputError
from mambar.image_file import MAX_PIXELS
from mambar.models.timm_vit import TimmViT
from mambar.models.vision_mamba import VisionMamba

logger = logging.getLogger("mambar.analysis.analyze")


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalysisOutput:
    """The path of report.html, the results that it shows, and the run time in seconds."""

    report: Path
    analysis: Analysis
    seconds: float


@accept_old_names(LOADER_ARGUMENTS)
def analyze(
    model: str | Path,
    *,
    out: Path,
    compare: str | Path | None = None,
    names: Sequence[str] = (),
    data: str | Path | ImageDataset | None = None,
    images: Sequence[str | Path] = (),
    pretrained: bool = False,
    options: AnalysisOptions | None = None,
    data_options: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    progress: ProgressCallback | None = None,
) -> AnalysisOutput:
    """Analyzes `model`, and `compare` if given, and writes report.html and its files into `out`.

    Args:
        model, compare: A run directory, a checkpoint file, a model name, or timm/NAME. A named model has random
            weights unless `pretrained`.
        names: Names of the two in figures and tables; by default those of the directories and models.
        out: A new or empty directory; `InputError` is raised otherwise.
        data: The images of the statistics and of the gallery: a dataset, or the path or name of one, whose validation
            split is read with `data_options`.
        images: Image files, folders or patterns for the gallery; unreadable ones are left out with a warning. Without
            `data` and `images`: the photographs of scikit-image.
        max_pixels: The largest of `images` to decode; larger JPEGs are reduced.
        progress: Called with the part and the number of images done.
    """
    options = options or AnalysisOptions()
    started = time.monotonic()
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out} exists and is not an empty directory; choose a new directory.")
    given = images_from_paths(images, max_pixels=max_pixels) if images else None
    shown, dataset = _gallery_and_dataset(data, given, options, data_options or {})
    size = options.img_size
    analyzed_models = []
    for place, source in enumerate([model] if compare is None else [model, compare]):
        analyzed = open_model(source, pretrained=pretrained, img_size=size, seed=options.seed, device=device)
        if data is None and size is None and not images:
            analyzed = _at_grid(source, analyzed, pretrained=pretrained, seed=options.seed, device=device)
        name = names[place] if place < len(names) else analyzed.name
        if name in [other.name for other in analyzed_models]:
            name += " (2)"
        analyzed = replace(analyzed, name=name)
        analyzed_models.append(analyzed)
    most = max(analyzed.model.num_layers for analyzed in analyzed_models)
    for layer in options.layers or ():
        if not -most <= layer < most:
            raise InputError(f"layers={layer} does not exist; the layers are 0 to {most - 1}, or -1 for the last.")
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for analyzed in analyzed_models:
        logger.info("Analyzing %s.", analyzed.name)
        report = None if progress is None else _prefixed(progress, analyzed.name)
        results[analyzed.name] = analyze_model(
            analyzed, dataset, shown, options, num_workers=num_workers, progress=report
        )
    counts = sorted({found.norms.num_images for found in results.values()})
    text = f"{dataset.name}, {' and '.join(map(str, counts))} images"
    analysis = Analysis(results=results, gallery=shown, data=text, options=options)
    path = write_analysis(out, analysis)
    return AnalysisOutput(report=path, analysis=analysis, seconds=time.monotonic() - started)


def _gallery_and_dataset(
    data: str | Path | ImageDataset | None,
    given: NamedImages | None,
    options: AnalysisOptions,
    data_options: dict[str, Any],
) -> tuple[NamedImages, ImageDataset]:
    """The images to show, and the dataset of the statistics."""
    dataset: ImageDataset
    if isinstance(data, str | Path):
        most = min(options.num_images, data_options.get("limit") or options.num_images)
        dataset = open_evaluation_dataset(data, **{**data_options, "limit": most})
    elif data is not None:
        dataset = data
    else:
        dataset = given or builtin_images()
    return sample_gallery(given or dataset, options.gallery, seed=options.seed), dataset


def _at_grid(
    source: str | Path, analyzed: AnalyzedModel, *, pretrained: bool, seed: int, device: str | torch.device
) -> AnalyzedModel:
    """The model with an input size of 14 to 28 patches a side; the paper's figures have about 28.

    A backbone from outside the package keeps its size: it may not accept another.
    """
    module: object = analyzed.model
    if not isinstance(module, VisionMamba | TimmViT):
        return analyzed
    side = min(28, max(14, *analyzed.grid)) * analyzed.model.patch_size
    if analyzed.preprocessing.size == (side, side):
        return analyzed
    resized = open_model(source, pretrained=pretrained, img_size=side, seed=seed, device=device)
    logger.info("%s reads images of %s.", analyzed.name, size_text((side, side), analyzed.trained_size))
    return resized


def _prefixed(progress: ProgressCallback, name: str) -> ProgressCallback:
    return lambda part, done: progress(f"{name}: {part}", done)
