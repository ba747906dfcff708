"""`mambar predict`: class names and probabilities for images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mambar.cli.arguments import AsJson, Device, Images, print_json
from mambar.cli.console import say
from mambar.device import choose_device
from mambar.errors import InputError

if TYPE_CHECKING:
    from mambar.evaluation.prediction import Prediction
    from mambar.export.onnx_predict import OnnxPrediction


def predict(
    run: Annotated[str, typer.Argument(help="A run directory, a model file, an .onnx file, or a hub id owner/name.")],
    images: Images,
    top: Annotated[int, typer.Option(min=1, help="Number of classes per image.")] = 5,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Classify images and print the most probable classes. An exported .onnx file does not need torch."""
    paths = [Path(image) for image in images]
    found = _by_onnx(run, paths, top, device) if run.endswith(".onnx") else _by_model(run, paths, top, device)
    if as_json:
        print_json({path: [vars(each) for each in predictions] for path, predictions in found.items()})
        return
    for path, predictions in found.items():
        say(path)
        for prediction in predictions:
            say(f"  {prediction.probability:7.2%}  {prediction.name}")


def _by_model(run: str, paths: list[Path], top: int, device: str) -> "dict[str, list[Prediction]]":
    from mambar.evaluation.prediction import predict_file
    from mambar.hub import load

    model = load(run, device=choose_device(device))
    return {str(path): predict_file(model, path, top=top) for path in paths}


def _by_onnx(file: str, paths: list[Path], top: int, device: str) -> "dict[str, list[OnnxPrediction]]":
    """Predictions without torch: only numpy, Pillow and onnxruntime are imported."""
    from mambar.export.onnx_predict import OnnxModel

    if device not in ("auto", "cpu"):
        raise InputError(f"--device {device} is not available for .onnx files, which run on the CPU; omit it.")
    model = OnnxModel(file)
    return {str(path): model.predict(path, top=top) for path in paths}
