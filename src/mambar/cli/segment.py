"""`mambar segment`: semantic segmentation of image files."""

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
    from mambar.segmentation.segment import Segmentation


def segment(
    run: Annotated[str, typer.Argument(help="The run directory of a segmenter.")],
    images: Images,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Segment images; write an overlay PNG, an index PNG and a JSON file of class areas for each.

    The default of --out is the directory segmented. A folder is searched with its sub-folders, which --out gets too if
    two images have the same name. The exit code is 2 if an image cannot be read; the others are segmented.
    """

    def load() -> "Callable[[Path], Segmentation]":
        from mambar.segmentation.files import load_with_inference
        from mambar.segmentation.segment import segment

        model, inference = load_with_inference(run, device=choose_device(device))
        return partial(segment, model, inference=inference, max_pixels=max_pixels or MAX_PIXELS)

    def describe(result: "Segmentation") -> str:
        return ", ".join(f"{name} {share:.1%}" for name, share in list(result.areas.items())[:4])

    save_results(images, load, describe, out=out or Path("segmented"), force=force, as_json=as_json)
