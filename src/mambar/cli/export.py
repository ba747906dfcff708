"""`mambar export`: a trained model as a file for other programs, checked against the model on the spot."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambar.cli.arguments import AsJson, Assignments, img_size, parse, print_json, truth, whole_number
from mambar.cli.console import say
from mambar.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from mambar.export import ParityReport
    from mambar.models import VisionMamba

logger = logging.getLogger("mambar.cli.export")

# Every format with the ending of its file; transformers takes a directory.
_ENDINGS = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "aoti": ".aoti.pt2",
    "openvino": ".xml",
    "transformers": "-transformers",
}
_ONNX_ONLY = ("opset", "scan")


def export(
    run: Annotated[str, typer.Argument(help="A run directory, a model file, a hub id owner/name, or a model's name.")],
    assignments: Assignments = None,
    format: Annotated[
        str, typer.Option("--format", help=f"One of {', '.join(_ENDINGS)}.", autocompletion=lambda: list(_ENDINGS))
    ] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Weights in eight bits (onnx), with what that costs.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a model, hold the file against it on 256 images, and write the parity report beside it.

    onnx takes any batch, height and width; torch-export, aoti and openvino any batch at one img_size=. out= names the
    file (default: export/ in the run, else the current directory). data=SET checks on its held-out images and says the
    accuracy, which --int8 does with the run's own data. Others: opset=20 scan=loop|doubling (onnx), pretrained=true for
    a bare name. Runs on the CPU.
    """
    allowed = ("out", "data", "img_size", "pretrained", *_ONNX_ONLY)
    options = parse(assignments, allowed=allowed)
    fields = options.fields
    if format not in _ENDINGS:
        raise InputError(f"--format {format} is not known; choose one of {', '.join(_ENDINGS)}.")
    onnx_fields = [name for name in _ONNX_ONLY if name in fields] + (["--int8"] if int8 else [])
    if onnx_fields and format != "onnx":
        raise InputError(f"{onnx_fields[0]} belongs to --format onnx; leave it away or choose that format.")
    if "img_size" in fields and format == "transformers":
        raise InputError("img_size belongs to traced formats; a transformers model reads any size.")
    path = options.out or _default_out(run, _ENDINGS[format], int8)
    chosen: dict[str, Any] = {"force": force}
    if "img_size" in fields:
        chosen["img_size"] = img_size(fields["img_size"])
    if format == "onnx":
        chosen |= {"int8": int8, "scan": fields.get("scan", "loop")}
        chosen["opset"] = whole_number("opset", fields.get("opset", "20"), 18)
    # A file in the way is found before minutes of work, not after them.
    _refuse_taken(path, force)
    model = _model(run, pretrained=truth("pretrained", fields.get("pretrained", "false")))
    images, labels = _held_out(run, model, options.data, int8, chosen.get("img_size"))
    if images is not None:
        chosen |= {"images": images, "labels": labels}
    logger.info("Exporting %s as %s and checking it; a Base model takes minutes.", run, format)
    report = _transformers(model, path, **chosen) if format == "transformers" else _file(model, path, format, chosen)
    if as_json:
        print_json(report.to_dict())
        return
    for line in report.lines():
        say(line)
    if int8 and report.model_accuracy is None:
        say("accuracy: not run; give data=SET with the model's classes to see what int8 costs")


def _file(model: "VisionMamba", path: Path, format: str, options: dict[str, Any]) -> "ParityReport":
    from mambar.export import export_model

    return export_model(model, path, format=format, **options)


def _transformers(
    model: "VisionMamba",
    directory: Path,
    *,
    force: bool,
    images: "Tensor | None" = None,
    labels: "Tensor | None" = None,
) -> "ParityReport":
    """A directory that transformers reads; its files arrive there after they were held against the model."""
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
        export_transformers(model, staged)
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


def _refuse_taken(path: Path, force: bool) -> None:
    import os

    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists already; choose another place with out= or give --force.")


def _model(run: str, *, pretrained: bool) -> "VisionMamba":
    from mambar.hub import create_model, list_models, load

    if run in list_models() and not Path(run).exists():
        if not pretrained:
            logger.warning("%s has random weights here; pretrained=true loads the released ones.", run)
        return create_model(run, pretrained=pretrained).eval()
    return load(run)


def _held_out(
    run: str, model: "VisionMamba", data: str | None, int8: bool, size: int | tuple[int, int] | None
) -> "tuple[Tensor | None, Tensor | None]":
    """Images and labels to check on: of `data`; for int8, whose accuracy is the question, else of the run's own."""
    from mambar.recipes.evaluation import held_out_images

    if data is None and not (int8 and (Path(run) / "recipe.json").is_file()):
        return None, None
    return held_out_images(model, run=None if data is not None else run, data=data, img_size=size)
