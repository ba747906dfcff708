"""`mambar evaluate`: top-1, top-5 and per class on held-out images."""

from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, Assignments, parse, pick_device, print_json, whole_number
from mambar.cli.console import say


def evaluate(
    run: Annotated[str, typer.Argument(help="A run directory, a model file, or a hub id owner/name.")],
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained model (data= split=val batch_size=64 crop= device=auto workers=0).

    data defaults to what the run was trained on; crop to the model's own preprocessing.
    """
    options = parse(assignments, allowed=("data", "split", "batch_size", "crop", "device", "workers"))
    fields = options.fields

    from mambar.recipes.evaluation import evaluate_run

    result = evaluate_run(
        run,
        data=options.data,
        split=fields.get("split", "val"),
        batch_size=whole_number("batch_size", fields.get("batch_size", "64"), 1),
        crop=fields.get("crop"),
        device=pick_device(options.device),
        workers=options.workers or 0,
    )
    if as_json:
        print_json(result.to_dict())
        return
    say(f"top-1 {result.top1:.2%}  top-5 {result.top5:.2%}  loss {result.loss:.4f}  ({result.count:,} images)")
    width = max(map(len, result.per_class), default=0)
    for name, share in result.per_class.items():
        say(f"  {name:{width}}  " + ("no images" if share is None else f"{share:7.2%}"))
