"""`mambar predict`: class names and probabilities for images."""

from pathlib import Path
from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, parse, pick_device, print_json, whole_number


def predict(
    run: Annotated[str, typer.Argument(help="A run directory, a model file, or a hub id owner/name.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, and options as NAME=VALUE.")],
    as_json: AsJson = False,
) -> None:
    """Name what is on images, with probabilities (top=5 device=auto)."""
    from mambar.errors import InputError

    # NAME=VALUE that is no file is an option: typer has no second list of arguments.
    paths = [Path(image) for image in images if "=" not in image or Path(image).exists()]
    options = parse([image for image in images if Path(image) not in paths], allowed=("top", "device"))
    if not paths:
        raise InputError("predict needs at least one image; give the path of a PNG, JPEG or WEBP file.")
    top = whole_number("top", options.fields.get("top", "5"), 1)

    from mambar.evaluation.prediction import predict_file
    from mambar.hub import load

    model = load(run, device=pick_device(options.device))
    found = {str(path): predict_file(model, path, top=top) for path in paths}
    if as_json:
        print_json({path: [vars(guess) for guess in guesses] for path, guesses in found.items()})
        return
    for path, guesses in found.items():
        typer.echo(path)
        for guess in guesses:
            typer.echo(f"  {guess.probability:7.2%}  {guess.name}")
