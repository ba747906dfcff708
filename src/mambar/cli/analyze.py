"""`mambar analyze`: look into a model, alone or beside another."""

import logging
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mambar.cli.arguments import AsJson, Assignments, parse, print_json, take_data_options, truth
from mambar.cli.console import say
from mambar.deprecated import ANALYSIS_FIELDS, translate_assignment
from mambar.device import choose_device
from mambar.errors import InputError

logger = logging.getLogger("mambar.cli.analyze")


def analyze(
    model: Annotated[str, typer.Argument(help="A run directory, a checkpoint, a name of ours, or timm/NAME.")],
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Measure token norms, outliers, feature and register maps; write report.html, figures and numbers.

    compare=MODEL shows two side by side in one scale; data=SET takes statistics, images=PATH,PATH shows pictures of
    your own (default: built-in photographs); pretrained=true loads weights for a bare name, which otherwise has
    random ones. Others: layers=7,23 tensor=residual|mixer|normed vector= metric= img_size= num_images= probes=
    scale=linear|log colormap= data_options.NAME= seed= device= workers= out=.
    """
    from mambar.analysis.analyze import analyze as run
    from mambar.analysis.options import AnalysisOptions
    from mambar.training.fields import field_types
    from mambar.training.fields import parse as parse_field

    types = field_types(AnalysisOptions)
    known = (*types, *ANALYSIS_FIELDS, "compare", "data", "images", "pretrained", "out", "device", "workers")
    others, of_data = take_data_options(assignments)
    options = parse(others, allowed=known)
    given = {translate_assignment(name, ANALYSIS_FIELDS): value for name, value in options.fields.items()}
    chosen: dict[str, Any] = {
        name: parse_field(types[name], value, name=name) for name, value in given.items() if name in types
    }
    if options.seed is not None:
        chosen["seed"] = options.seed
    out = options.out or _default_out(model)
    images = [Path(part) for part in given.get("images", "").split(",") if part]
    missing = [str(path) for path in images if not path.exists()]
    if missing:
        raise InputError(f"images={missing[0]} does not exist; give files or folders, separated by commas.")
    result = run(
        model,
        out=out,
        compare=given.get("compare"),
        data=options.data,
        images=images,
        pretrained=truth("pretrained", given.get("pretrained", "false")),
        options=AnalysisOptions(**chosen),
        data_options=of_data,
        device=choose_device(options.device),
        workers=options.workers or 0,
        progress=_Progress(),
    )
    if as_json:
        print_json({"report": str(result.report), "seconds": result.seconds})
        return
    say(f"report: {result.report} ({result.seconds:.0f} s)")


class _Progress:
    """Says every few seconds how many images a part of the analysis has seen."""

    def __init__(self, *, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self.said = time.monotonic()

    def __call__(self, part: str, done: int) -> None:
        if time.monotonic() - self.said >= self.seconds:
            self.said = time.monotonic()
            logger.info("%s: %d images", part, done)


def _default_out(model: str) -> Path:
    from mambar.recipes.run import default_out

    return default_out("analysis-" + Path(model).name)
