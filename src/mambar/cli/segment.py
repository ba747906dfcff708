"""`mambar segment`: semantic segmentation of image files."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, Device, Force, Images, MaxPixels, Out, print_json
from mambar.cli.console import say
from mambar.cli.images import process_images, raise_unreadable
from mambar.device import choose_device
from mambar.errors import InputError
from mambar.image_file import MAX_PIXELS
from mambar.image_paths import find_images


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

    The default of --out is the directory segmented. A folder is searched with its sub-folders; --out gets the same ones
    if two images have the same name. The exit code is 2 if an image cannot be read; the others are segmented.
    """
    files = find_images(images)
    names = _output_names(files)

    from mambar.segmentation.files import load_with_inference
    from mambar.segmentation.segment import Segmentation
    from mambar.segmentation.segment import segment as run_segment

    model, inference = load_with_inference(run, device=choose_device(device))
    target = out or Path("segmented")
    written: dict[Path, list[Path]] = {}

    def segment_file(path: Path) -> Segmentation:
        result = run_segment(model, path, inference=inference, max_pixels=max_pixels or MAX_PIXELS)
        written[path] = result.save(target / names[path].parent, names[path].name, force=force)
        return result

    def show(path: Path, result: Segmentation) -> None:
        if not as_json:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in list(result.areas.items())[:4])
            say(f"{path}: {shares} → {written[path][0]}")

    found, errors = process_images(files, segment_file, show)
    if as_json:
        content = {
            str(path): {**each.to_dict(), "files": list(map(str, written[path]))} for path, each in found.items()
        }
        print_json({**content, **{str(path): {"error": str(error)} for path, error in errors.items()}})
    raise_unreadable(list(errors.values()), len(files))


def _output_names(files: list[Path]) -> dict[Path, Path]:
    """The output path without suffix of each image, with its folder if two images have the same name."""
    names = {file: Path(file.stem) for file in files}
    if len(set(names.values())) < len(files):
        top = Path(os.path.commonpath([file.absolute().parent for file in files]))
        names = {file: file.absolute().relative_to(top).with_suffix("") for file in files}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        raise InputError(f"two images are named {repeated[0]}; segment them separately, each with its own --out.")
    return names
