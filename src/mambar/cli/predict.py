"""`mambar predict`: class names and probabilities for images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mambar.cli.arguments import AsJson, Device, Images, MaxPixels, print_json
from mambar.cli.console import say
from mambar.cli.images import process_images, raise_unreadable
from mambar.device import choose_device
from mambar.errors import InputError
from mambar.image_file import MAX_PIXELS
from mambar.image_paths import find_images


def predict(
    run: Annotated[str, typer.Argument(help="A run directory, a model file, an .onnx file, or a hub id owner/name.")],
    images: Images,
    top: Annotated[int, typer.Option(min=1, help="Number of classes per image.")] = 5,
    device: Device = "auto",
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Classify images and print the most probable classes. An exported .onnx file does not need torch.

    A folder is searched with its sub-folders. The exit code is 2 if an image cannot be read; the others are classified.
    """
    files = find_images(images)
    options = {"top": top, "max_pixels": max_pixels or MAX_PIXELS}
    if run.endswith(".onnx"):
        from mambar.export.onnx_predict import OnnxModel

        if device not in ("auto", "cpu"):
            raise InputError(f"--device {device} is not available for .onnx files, which run on the CPU; omit it.")
        classify: Callable[[Path], list[Any]] = partial(OnnxModel(run).predict, **options)
    else:
        from mambar.evaluation.prediction import predict_file
        from mambar.hub import load
        from mambar.nn import use_cuda_graphs

        classify = partial(predict_file, use_cuda_graphs(load(run, device=choose_device(device))), **options)
    found, errors = process_images(files, classify, (lambda path, predictions: None) if as_json else _say)
    if as_json:
        content: dict[str, Any] = {str(path): [vars(each) for each in guesses] for path, guesses in found.items()}
        print_json({**content, **{str(path): {"error": str(error)} for path, error in errors.items()}})
    raise_unreadable(list(errors.values()), len(files))


def _say(path: Path, predictions: list[Any]) -> None:
    say(str(path))
    for prediction in predictions:
        say(f"  {prediction.probability:7.2%}  {prediction.name}")
