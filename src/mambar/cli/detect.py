"""`mambar detect`: objects in image files."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mambar.cli.arguments import AsJson, Device, Force, Images, MaxPixels, Out
from mambar.cli.images import save_results
from mambar.device import choose_device
from mambar.image_file import MAX_PIXELS

if TYPE_CHECKING:
    from mambar.detection.detect import Detections


def detect(
    run: Annotated[str, typer.Argument(help="The run directory of a detector.")],
    images: Images,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Smallest score to keep.")] = 0.5,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Detect objects; write a PNG with boxes (and masks) and a JSON file of the objects for each image.

    The default of --out is the directory detected. A folder is searched with its sub-folders, which --out gets too if
    two images have the same name. The exit code is 2 if an image cannot be read; the others are processed.
    """

    def load() -> "Callable[[Path], Detections]":
        from mambar.detection.detect import detect
        from mambar.detection.files import load_detector

        model = load_detector(run, device=choose_device(device))
        return partial(detect, model, threshold=threshold, max_pixels=max_pixels or MAX_PIXELS)

    def describe(result: "Detections") -> str:
        counts = Counter(result.class_name(label) for label in result.labels.tolist())
        return ", ".join(f"{count} {name}" for name, count in counts.most_common(4)) or "no object"

    save_results(images, load, describe, out=out or Path("detected"), force=force, as_json=as_json)
