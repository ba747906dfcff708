"""`mambar segment`: every pixel of an image named, as pictures and numbers."""

from pathlib import Path
from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, parse, print_json
from mambar.cli.console import say
from mambar.device import choose_device
from mambar.errors import InputError


def segment(
    run: Annotated[str, typer.Argument(help="The run directory of a segmenter.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, and options as NAME=VALUE.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write overlay PNG with legend, index PNG and JSON of areas for each image (out=segmented device=auto)."""
    paths = [Path(image) for image in images if "=" not in image or Path(image).exists()]
    options = parse([image for image in images if Path(image) not in paths], allowed=("out", "device"))
    if not paths:
        raise InputError("segment needs at least one image; give the path of a PNG, JPEG or WEBP file.")
    stems = [path.stem for path in paths]
    twins = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twins:
        raise InputError(f"two images are called {twins[0]}; segment them apart, each with its own out=.")

    from mambar.segmentation.files import load_with_inference
    from mambar.segmentation.segment import segment as run_segment

    model, inference = load_with_inference(run, device=choose_device(options.device))
    out = options.out or Path("segmented")
    found = {}
    for path in paths:
        result = run_segment(model, path, inference=inference)
        written = result.write(out, path.stem, force=force)
        found[str(path)] = {**result.to_dict(), "files": [str(file) for file in written]}
        if not as_json:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in list(result.areas.items())[:4])
            say(f"{path}: {shares} → {written[0]}")
    if as_json:
        print_json(found)
