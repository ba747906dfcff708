"""`mambar export`: a trained model as a file for other programs, compared with the model."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambar.cli.arguments import AsJson, Data, Force, ImgSize, MaxPixels, Out, Pretrained, data_options, print_json
from mambar.cli.console import say
from mambar.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from mambar.export import ParityReport
    from mambar.models import VisionMamba

logger = logging.getLogger("mambar.cli.export")

# Format → file suffix; transformers is a directory.
_ENDINGS = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "aoti": ".aoti.pt2",
    "openvino": ".xml",
    "transformers": "-transformers",
}


def export(
    run: Annotated[str, typer.Argument(help="A run directory, a model file, a hub id owner/name, or a model's name.")],
    format: Annotated[
        str, typer.Option(help=f"One of {', '.join(_ENDINGS)}.", autocompletion=lambda: list(_ENDINGS))
    ] = "onnx",
    out: Out = None,
    data: Data = None,
    img_size: ImgSize = None,
    pretrained: Pretrained = False,
    opset: Annotated[int | None, typer.Option(min=18, help="ONNX opset version; default 20.")] = None,
    scan: Annotated[str | None, typer.Option(help="ONNX form of the scan: loop (default), doubling.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="ONNX with 8-bit weights; reports the loss of accuracy.")
    ] = False,
    kernels: Annotated[
        bool,
        typer.Option("--kernels", help="torch-export and aoti: keep mambar's CPU kernels; loading needs mambar."),
    ] = False,
    force: Force = False,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Export a model, compare the file with the model on 256 images, and write a parity report.

    onnx and openvino accept any batch size, height and width; torch-export and aoti accept any batch size at one
    --img-size. The default of --out is export/ in the run, else the current directory. With --data the comparison uses
    its held-out images and reports the accuracy; --int8 uses the run's own data. Runs on the CPU.
    """
    if format not in _ENDINGS:
        raise InputError(f"--format {format} is not known; choose one of {', '.join(_ENDINGS)}.")
    path = out or _default_out(run, _ENDINGS[format], int8)
    chosen: dict[str, Any] = {"force": force}
    if img_size is not None:
        chosen["img_size"] = img_size
    if format == "onnx":
        chosen |= {"int8": int8, "scan": scan or "loop", "opset": opset or 20}
    if format in ("torch-export", "aoti"):
        chosen["kernels"] = kernels
    # An existing file is found before minutes of work, not after them.
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists already; choose another place with --out or give --force.")

    from mambar.export import export_model

    model = _model(run, pretrained=pretrained)
    images, labels = _held_out(run, model, data, int8, img_size, max_pixels)
    if images is not None:
        chosen |= {"images": images, "labels": labels}
    logger.info("Exporting %s as %s, then comparing the file with the model; a Base model takes minutes.", run, format)
    if format == "transformers":
        report = _transformers(model, path, **chosen)
    else:
        report = export_model(model, path, format=format, **chosen)
    if as_json:
        print_json(report.to_dict())
        return
    for line in report.lines():
        say(line)
    if int8 and report.model_accuracy is None:
        say("accuracy: not run; give --data SET with the model's classes to measure what int8 costs")


def _transformers(
    model: "VisionMamba",
    directory: Path,
    *,
    force: bool,
    images: "Tensor | None" = None,
    labels: "Tensor | None" = None,
) -> "ParityReport":
    """Writes a directory that transformers reads, after comparing it with the model."""
    import tempfile

    from mambar.errors import DiskError
    from mambar.export.parity import NUM_IMAGES, compare, probe_images, require, write_report
    from mambar.hub.huggingface import MambarForImageClassification, export_transformers

    try:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent)
    except OSError as error:
        raise DiskError(f"{directory} could not be written: {error.strerror or error}.") from error
    with scratch as name:
        staged = Path(name)
        export_transformers(model, staged, name=directory.name)
        loaded = MambarForImageClassification.from_pretrained(staged).eval()
        if images is None:
            images = probe_images(NUM_IMAGES, model.config.in_chans, model.config.size)
        report = compare(
            model,
            lambda batch: loaded(batch).logits,
            staged / "model.safetensors",
            name=directory,
            format="transformers",
            images=images,
            labels=labels,
        )
        require(report)
        for file in staged.iterdir():
            file.replace(directory / file.name)
    write_report(directory, report)
    return report


def _default_out(run: str, ending: str, int8: bool) -> Path:
    source = Path(run)
    name = "model-int8" if int8 else "model"
    if source.is_dir():
        return source / "export" / (name + ending)
    stem = source.stem if source.is_file() else source.name
    return Path(stem + ("-int8" if int8 else "") + ending)


def _model(run: str, *, pretrained: bool) -> "VisionMamba":
    from mambar.hub import create_model, list_models, load
    from mambar.hub.weights import WEIGHTS
    from mambar.models.timm_vit import as_vision_mamba

    if run in list_models() and not Path(run).exists():
        if not pretrained:
            hint = "--pretrained loads the released ones" if run in WEIGHTS else "no released ones can be downloaded"
            logger.warning("%s has random weights here; %s.", run, hint)
        return as_vision_mamba(create_model(run, pretrained=pretrained), "Export").eval()
    return as_vision_mamba(load(run), "Export")


def _held_out(
    run: str,
    model: "VisionMamba",
    data: str | None,
    int8: bool,
    size: int | tuple[int, int] | None,
    max_pixels: int | None,
) -> "tuple[Tensor | None, Tensor | None]":
    """Images and labels of `data`, or for int8 of the run's own data; (None, None) otherwise."""
    from mambar.recipes.evaluate_run import held_out_images

    if data is None and not (int8 and (Path(run) / "recipe.json").is_file()):
        return None, None
    options = data_options(None, max_pixels)
    return held_out_images(model, run=None if data is not None else run, data=data, img_size=size, data_options=options)
