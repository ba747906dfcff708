"""The engine of `mambar analyze`: one or two models in, a directory with report, figures and numbers out."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mambar.analysis.analyze_model import study
from mambar.analysis.analyzed_model import Subject, open_subject
from mambar.analysis.draw.analysis_report import write_analysis
from mambar.analysis.images import Pictures, built_in_pictures, gallery_of, pictures_from
from mambar.analysis.numbers import Analysis
from mambar.analysis.options import AnalysisOptions
from mambar.data import ImageDataset
from mambar.data.registry import open_dataset
from mambar.errors import InputError

logger = logging.getLogger("mambar.analysis.analyze")

Report = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalysisResult:
    """Where the report is, and what stands in it."""

    report: Path
    analysis: Analysis
    seconds: float


def analyze(
    model: str | Path,
    *,
    out: Path,
    compare: str | Path | None = None,
    data: str | Path | ImageDataset | None = None,
    images: Sequence[str | Path] = (),
    pretrained: bool = False,
    options: AnalysisOptions | None = None,
    data_options: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    workers: int = 0,
    progress: Report | None = None,
) -> AnalysisResult:
    """Looks into `model`, beside `compare` where that is given, and writes report.html and its files into `out`.

    model, compare: a run directory, a checkpoint file, one of our names, or timm/NAME; a name has random weights
    unless `pretrained`. data: what statistics are taken of and the gallery is drawn from (its validation split;
    `data_options` are the dataset's own); images: files or folders to show instead; without both, the photographs
    that come with scikit-image. `progress` is called with the part and the number of images done.

    Raises `InputError` where `out` holds files already, or something given cannot be read.
    """
    options = options or AnalysisOptions()
    started = time.monotonic()
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out} holds something already; choose a new directory.")
    shown, dataset = _given(data, images, options, data_options or {})
    size = options.img_size
    subjects = []
    for source in [model] if compare is None else [model, compare]:
        subject = open_subject(source, pretrained=pretrained, img_size=size, seed=options.seed, device=device)
        if data is None and size is None and not images:
            subject = _at_grid(source, subject, pretrained=pretrained, seed=options.seed, device=device)
        subjects.append(_renamed(subject, [other.name for other in subjects]))
    _refuse_missing_layers(options, [subject.model.num_layers for subject in subjects])
    out.mkdir(parents=True, exist_ok=True)
    studies = {}
    for subject in subjects:
        logger.info("Looking into %s.", subject.name)
        told = _prefixed(progress, subject.name)
        studies[subject.name] = study(subject, dataset, shown, options, workers=workers, progress=told)
    analysis = Analysis(studies=studies, gallery=shown, data=_data_text(dataset, studies), options=options)
    path = write_analysis(out, analysis)
    return AnalysisResult(report=path, analysis=analysis, seconds=time.monotonic() - started)


def _refuse_missing_layers(options: AnalysisOptions, counts: Sequence[int]) -> None:
    most = max(counts)
    for layer in options.layers or ():
        if not -most <= layer < most:
            raise InputError(f"layers={layer} does not exist; the layers are 0 to {most - 1}, or -1 for the last.")


def _given(
    data: str | Path | ImageDataset | None,
    images: Sequence[str | Path],
    options: AnalysisOptions,
    data_options: dict[str, Any],
) -> tuple[Pictures, ImageDataset]:
    """What is shown, and what statistics are taken of."""
    pictures = pictures_from(images) if images else None
    dataset: ImageDataset
    if isinstance(data, str | Path):
        most = min(options.num_images, data_options.get("limit") or options.num_images)
        dataset = open_dataset(data, "val", **{**data_options, "limit": most})
    elif data is not None:
        dataset = data
    else:
        dataset = pictures or built_in_pictures()
    return gallery_of(pictures or dataset, options.gallery, seed=options.seed), dataset


def _at_grid(
    source: str | Path, subject: Subject, *, pretrained: bool, seed: int, device: str | torch.device
) -> Subject:
    """The model reading photographs in 14 to 28 patches a side; the paper's figures have about 28."""
    side = min(28, max(14, *subject.grid)) * subject.model.patch_size
    if subject.preprocessing.size == (side, side):
        return subject
    return open_subject(source, pretrained=pretrained, img_size=side, seed=seed, device=device)


def _renamed(subject: Subject, taken: Sequence[str]) -> Subject:
    if subject.name not in taken:
        return subject
    return replace(subject, name=f"{subject.name} (2)")


def _prefixed(progress: Report | None, name: str) -> Report | None:
    if progress is None:
        return None
    return lambda part, done: progress(f"{name}: {part}", done)


def _data_text(dataset: ImageDataset, studies: dict[str, Any]) -> str:
    counts = {found.norms.num_images for found in studies.values()}
    return f"{dataset.name}, {' and '.join(str(count) for count in sorted(counts))} images"
