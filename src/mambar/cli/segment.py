"""`mambar segment`: semantic segmentation of image files."""

from pathlib import Path
from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, Device, Force, Images, Out, print_json
from mambar.cli.console import say
from mambar.device import choose_device
from mambar.errors import InputError


def segment(
    run: Annotated[str, typer.Argument(help="The run directory of a segmenter.")],
    images: Images,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Segment images; write an overlay PNG, an index PNG and a JSON file of class areas for each.

    The default of --out is the directory segmented.
    """
    paths = [Path(image) for image in images]
    stems = [path.stem for path in paths]
    repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
    if repeated:
        raise InputError(f"two images are named {repeated[0]}; segment them separately, each with its own --out.")

    from mambar.segmentation.files import load_with_inference
    from mambar.segmentation.segment import segment as run_segment

    model, inference = load_with_inference(run, device=choose_device(device))
    target = out or Path("segmented")
    found = {}
    for path in paths:
        result = run_segment(model, path, inference=inference)
        written = result.save(target, path.stem, force=force)
        found[str(path)] = {**result.to_dict(), "files": [str(file) for file in written]}
        if not as_json:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in list(result.areas.items())[:4])
            say(f"{path}: {shares} → {written[0]}")
    if as_json:
        print_json(found)
