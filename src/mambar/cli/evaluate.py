"""`mambar evaluate`: a classifier's top-1, top-5 and classes, or a segmenter's mIoU, on held-out images."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mambar.cli.arguments import (
    AsJson,
    Assignments,
    parse,
    print_json,
    take_data_options,
    truth,
    whole_number,
)
from mambar.cli.console import say
from mambar.device import choose_device
from mambar.errors import InputError

_OF_CLASSIFIER = ("batch_size", "crop")
_OF_SEGMENTER = ("crop", "stride", "scales", "flip")


def evaluate(
    run: Annotated[str, typer.Argument(help="A run directory, a model file, or a hub id owner/name.")],
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained model (data= split=val batch_size=64 crop= device=auto workers=0).

    data defaults to what the run was trained on; crop to the model's own preprocessing. A segmenter takes crop= (the
    window in pixels) stride= scales=0.5,1,1.5 flip=true instead, by default as in training. data_options.NAME= are the
    data set's own options.
    """
    from mambar.segmentation.files import is_segmenter

    others, of_data = take_data_options(assignments)
    segmenter = is_segmenter(run)
    own = _OF_SEGMENTER if segmenter else _OF_CLASSIFIER
    options = parse(others, allowed=("data", "split", *own, "device", "workers"))
    fields = dict(options.fields)
    common: dict[str, Any] = {
        "data": options.data,
        "split": fields.pop("split", "val"),
        "data_options": of_data,
        "device": choose_device(options.device),
        "workers": options.workers or 0,
    }
    if segmenter:
        _segmenter(run, fields, common, as_json=as_json)
    else:
        _classifier(run, fields, common, as_json=as_json)


def _classifier(run: str, fields: dict[str, str], common: dict[str, Any], *, as_json: bool) -> None:
    from mambar.recipes.evaluation import evaluate_run

    batch_size = whole_number("batch_size", fields.get("batch_size", "64"), 1)
    result = evaluate_run(run, batch_size=batch_size, crop=fields.get("crop"), **common)
    if as_json:
        print_json(result.to_dict())
        return
    say(f"top-1 {result.top1:.2%}  top-5 {result.top5:.2%}  loss {result.loss:.4f}  ({result.count:,} images)")
    _say_classes(result.per_class, without="no images")


def _segmenter(run: str, fields: dict[str, str], common: dict[str, Any], *, as_json: bool) -> None:
    from dataclasses import replace

    from mambar.segmentation.files import load_with_inference
    from mambar.segmentation.run_evaluation import evaluate_run

    changes: dict[str, Any] = {
        name: whole_number(name, fields[name], 1) for name in ("crop", "stride") if name in fields
    }
    if "flip" in fields:
        changes["flip"] = truth("flip", fields["flip"])
    if "scales" in fields:
        changes["scales"] = tuple(_number("scales", part) for part in fields["scales"].split(","))
    inference = replace(load_with_inference(run)[1], **changes) if changes else None
    result = evaluate_run(run, inference=inference, **common)
    if as_json:
        print_json(result.to_dict())
        return
    say(f"mIoU {result.miou:.2%}  pixel accuracy {result.pixel_accuracy:.2%}  boundary F {result.boundary_f:.2%}")
    _say_classes(result.per_class, without="not there")


def _say_classes(shares: Mapping[str, float | None], *, without: str) -> None:
    width = max(map(len, shares), default=0)
    for name, share in shares.items():
        say(f"  {name:{width}}  " + (without if share is None else f"{share:7.2%}"))


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise InputError(f"{name}={value!r} must be numbers, separated by commas.") from error
