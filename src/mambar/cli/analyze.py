"""`mambar analyze`: norms, outliers, maps and probes of one model, or of two models on a common color scale."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mambar.cli.arguments import (
    AsJson,
    Compare,
    Data,
    DataOptions,
    Device,
    ImgSize,
    MaxPixels,
    NumWorkers,
    Out,
    Pretrained,
    data_options,
    named_values,
    numbers,
    print_json,
)
from mambar.cli.console import Progress, say
from mambar.deprecated import ANALYSIS_VALUES, log_renamed
from mambar.device import choose_device
from mambar.image_file import MAX_PIXELS
from mambar.json_fields import check_names

if TYPE_CHECKING:
    from mambar.analysis.measure.object_discovery import LostOptions

logger = logging.getLogger("mambar.cli.analyze")

_CAM = "Class-activation maps of the shown images, such as gradcam, hirescam or layercam."
_DISCOVER = "Find objects by LOST: default, or choices such as tensor=residual,bias=0.1."


def analyze(
    model: Annotated[str, typer.Argument(help="A run directory, a checkpoint, a model's name, or timm/NAME.")],
    assignments: DataOptions = None,
    compare: Compare = None,
    data: Data = None,
    images: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="An image or folder to show; repeatable.")
    ] = None,
    pretrained: Pretrained = False,
    layers: Annotated[str | None, typer.Option(metavar="LIST", help="Layers to show, as in 7,23.")] = None,
    tensor: Annotated[str, typer.Option(help="residual, mixer or normed.")] = "residual",
    vector: Annotated[
        str, typer.Option(help="Global vector of the feature map: register_mean, token, avg, head.")
    ] = "register_mean",
    metric: Annotated[str, typer.Option(help="Distance of the feature map: l2 or cosine.")] = "cosine",
    map_tensor: Annotated[str, typer.Option(help="Tensor of the feature and register maps.")] = "normed",
    img_size: ImgSize = None,
    num_images: Annotated[int, typer.Option(min=1, help="Images for statistics and probes.")] = 1000,
    max_maps: Annotated[int, typer.Option(min=1, help="Images whose maps are saved.")] = 1000,
    gallery: Annotated[int, typer.Option(min=1, help="Images to show.")] = 6,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per batch; by default chosen by memory.")
    ] = None,
    scale: Annotated[str, typer.Option(help="Color scale of norm maps: auto, linear or log.")] = "auto",
    resampling: Annotated[str, typer.Option(help="Resizing of maps: nearest or bicubic.")] = "nearest",
    colormap: Annotated[str, typer.Option(help="Colormap of norm maps.")] = "viridis",
    probes: Annotated[str, typer.Option(metavar="LIST", help="Probe methods; empty for none.")] = "ridge",
    folds: Annotated[int, typer.Option(min=2, help="Folds of the probes.")] = 5,
    test_time_registers: Annotated[int, typer.Option(min=0, help="Registers added without training; 0 for none.")] = 4,
    discover: Annotated[str | None, typer.Option(metavar="CHOICES", help=_DISCOVER)] = None,
    cam: Annotated[str | None, typer.Option(metavar="METHOD", help=_CAM)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of image samples and folds.")] = 0,
    out: Out = None,
    device: Device = "auto",
    num_workers: NumWorkers = 0,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Measure token norms, outliers, feature and register maps; write report.html, figures and numbers.

    --data SET is used for statistics and probes; without it and --images, built-in photographs are shown. A model's
    name without --pretrained has random weights.
    """
    from mambar.analysis.analyze import analyze as run
    from mambar.analysis.options import AnalysisOptions

    new_vector = ANALYSIS_VALUES["vector"].get(vector, vector)
    log_renamed(f"--vector {vector}", f"--vector {new_vector}")
    # Every option of the analysis has the name of its field.
    given = {
        **locals(),
        "vector": new_vector,
        "layers": None if layers is None else numbers("--layers", layers, int),
        "probes": tuple(name for name in probes.split(",") if name),
        "discover": None if discover is None else _lost_options(discover),
    }
    options = AnalysisOptions(**{each.name: given[each.name] for each in fields(AnalysisOptions)})
    result = run(
        model,
        out=out or _default_out(model),
        compare=compare,
        data=data,
        images=images or [],
        pretrained=pretrained,
        options=options,
        data_options=data_options(assignments, max_pixels if data else None),
        max_pixels=max_pixels or MAX_PIXELS,
        device=choose_device(device),
        num_workers=num_workers or 0,
        progress=Progress(),
    )
    if as_json:
        print_json({"report": str(result.report), "seconds": result.seconds})
        return
    say(f"report: {result.report} ({result.seconds:.0f} s)")


def _lost_options(text: str) -> "LostOptions":
    """The options of LOST from `default` or `name=value,…`."""
    from mambar.analysis.measure.object_discovery import LostOptions
    from mambar.training.fields import literal

    chosen = {} if text == "default" else named_values(text.split(","))
    check_names(chosen, (each.name for each in fields(LostOptions)), what="--discover has no choice")
    return LostOptions(**{name: literal(value) for name, value in chosen.items()})


def _default_out(model: str) -> Path:
    from mambar.recipes.run import default_out

    return default_out("analysis-" + Path(model).name)
