"""`mambar predict`: class names and probabilities for images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mambar.cli.arguments import AsJson, RunOptions, parse, print_json, whole_number
from mambar.cli.console import say
from mambar.device import choose_device
from mambar.errors import InputError

if TYPE_CHECKING:
    from mambar.evaluation.prediction import Guess
    from mambar.export.onnx_predict import OnnxPrediction


def predict(
    run: Annotated[str, typer.Argument(help="A run directory, model file, exported .onnx, or hub id owner/name.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, and options as NAME=VALUE.")],
    as_json: AsJson = False,
) -> None:
    """Name what is on images, with probabilities (top=5 device=auto). An exported .onnx file needs no torch."""
    # NAME=VALUE that is no file is an option: typer has no second list of arguments.
    paths = [Path(image) for image in images if "=" not in image or Path(image).exists()]
    options = parse([image for image in images if Path(image) not in paths], allowed=("top", "device"))
    if not paths:
        raise InputError("predict needs at least one image; give the path of a PNG, JPEG or WEBP file.")
    top = whole_number("top", options.fields.get("top", "5"), 1)

    found = _by_onnx(run, paths, top, options.device) if run.endswith(".onnx") else _by_model(run, paths, top, options)
    if as_json:
        print_json({path: [vars(guess) for guess in guesses] for path, guesses in found.items()})
        return
    for path, guesses in found.items():
        say(path)
        for guess in guesses:
            say(f"  {guess.probability:7.2%}  {guess.name}")


def _by_model(run: str, paths: list[Path], top: int, options: RunOptions) -> "dict[str, list[Guess]]":
    from mambar.evaluation.prediction import predict_file
    from mambar.hub import load

    model = load(run, device=choose_device(options.device))
    return {str(path): predict_file(model, path, top=top) for path in paths}


def _by_onnx(file: str, paths: list[Path], top: int, device: str) -> "dict[str, list[OnnxPrediction]]":
    """Without torch: only numpy, Pillow and onnxruntime are imported."""
    from mambar.export.onnx_predict import OnnxModel

    if device not in ("auto", "cpu"):
        raise InputError(f"device={device} is not for .onnx files, which run on the CPU here; leave it away.")
    model = OnnxModel(file)
    return {str(path): model.predict(path, top=top) for path in paths}
