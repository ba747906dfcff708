"""`mambar evaluate`: accuracy of a classifier, mIoU of a segmenter, AP of a detector, on held-out images."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mambar.cli.arguments import (
    AsJson,
    Data,
    DataOptions,
    Device,
    ImgSize,
    MaxPixels,
    NumWorkers,
    Out,
    Pretrained,
    Processes,
    data_options,
    numbers,
    print_json,
)
from mambar.cli.console import Progress, say, say_columns, say_table
from mambar.cli.option_rules import is_dense
from mambar.cli.torchrun import under_torchrun
from mambar.device import choose_device
from mambar.errors import InputError

logger = logging.getLogger("mambar.cli.evaluate")


def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            help="A run directory, a model file, or a hub id; with --protocol also a model's name, timm/NAME."
        ),
    ],
    assignments: DataOptions = None,
    data: Data = None,
    split: Annotated[str | None, typer.Option(help="train, val or test, in place of the default.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Classifiers: images per batch; default 64.")] = None,
    crop_pct: Annotated[float | None, typer.Option(help="Classifiers: fraction of the resized image to keep.")] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="Segmenters: window in pixels.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Segmenters: pixels between windows.")] = None,
    scales: Annotated[
        str | None, typer.Option(metavar="LIST", help="Segmenters: test-time scales, as in 0.5,1,1.5.")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Segmenters: average with flipped images.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Evaluate frozen features: knn, logistic, linear; with masks segmentation_knn, segmentation_linear.",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="With --protocol: registers, register_mean, token, avg, register_mean_avg (default)."
        ),
    ] = None,
    features_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --protocol: keep the features in DIR.")
    ] = None,
    img_size: ImgSize = None,
    pretrained: Pretrained = False,
    corruptions: Annotated[
        str | None, typer.Option(metavar="LIST", help="Classifiers: all, or kinds such as fog,frost (ImageNet-C).")
    ] = None,
    severities: Annotated[str, typer.Option(metavar="LIST", help="Severities of the corruptions.")] = "1,2,3,4,5",
    out: Out = None,
    device: Device = "auto",
    num_workers: NumWorkers = 0,
    max_pixels: MaxPixels = None,
    processes: Processes = 1,
    as_json: AsJson = False,
) -> int:
    """Evaluate a trained model on held-out images.

    By default it uses the validation images of the run. A folder given by --data is evaluated whole, or its val/ or
    test/ if it has one. The preprocessing is the model's. --img-size, --pretrained and --processes need --protocol,
    --out needs --corruptions or a segmentation protocol.
    """
    if processes > 1:
        return under_torchrun(processes)

    from mambar.hub.task_model import is_task_model
    from mambar.training.checkpoint.run_directory import read_located_recipe

    trained_on = read_located_recipe(run).data if (Path(run) / "recipe.json").is_file() else None
    if (
        data
        and trained_on
        and split is None
        and protocol is None
        and Path(data).resolve() == Path(trained_on).resolve()
    ):
        logger.warning("%s was trained on %s; --split val evaluates its validation images only.", run, data)
    common: dict[str, Any] = {
        "data": data,
        "split": split,
        "data_options": data_options(assignments, max_pixels),
        "device": choose_device(device),
        "num_workers": num_workers or 0,
    }
    classifier = {"--batch-size": batch_size, "--crop-pct": crop_pct, "--corruptions": corruptions}
    segmenter = {"--crop": crop, "--stride": stride, "--scales": scales, "--flip": flip}
    if protocol is not None:
        common |= {"batch_size": batch_size or 64, "features_dir": features_dir, "pretrained": pretrained}
        common |= {"img_size": img_size, "protocols": _names(protocol), "progress": Progress()}
        if is_dense(protocol):
            _dense(run, out, common, as_json=as_json)
        else:
            _frozen(run, common | ({"features": _names(features)} if features else {}), as_json=as_json)
        return 0
    kind = next((each for each in ("segmenter", "detector") if is_task_model(run, each)), "classifier")
    for other, options in (("classifier", classifier), ("segmenter", segmenter)):
        if kind != other and (given := _first_given(options)):
            raise InputError(f"{given} is an option for {other}s; {run} is a {kind}. Omit it.")
    if corruptions is not None:
        _corruptions(run, corruptions, severities, out, common | {"batch_size": batch_size or 64}, as_json=as_json)
    elif data == "imagenet_variant":
        _imagenet_variant(run, batch_size or 64, common, as_json=as_json)
    elif kind == "detector":
        _detector(run, common, as_json=as_json)
    elif kind == "segmenter":
        _segmenter(run, {"crop": crop, "stride": stride, "flip": flip}, scales, common, as_json=as_json)
    else:
        _classifier(run, batch_size or 64, crop_pct, common, as_json=as_json)
    return 0


def _first_given(options: Mapping[str, Any]) -> str | None:
    return next((name for name, value in options.items() if value is not None), None)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _frozen(run: str, given: dict[str, Any], *, as_json: bool) -> None:
    from mambar.recipes.frozen_features import evaluate_frozen_features

    result = evaluate_frozen_features(run, **given)
    if result is None:  # Another process prints the result.
        return
    if as_json:
        print_json(result.to_dict())
        return
    rows = []
    for score in result.scores:
        setting = f"k={score.setting}" if score.protocol == "knn" else f"{score.setting:g}"
        rows.append((score.features, score.protocol, setting, f"{score.top1:.2%}", f"{score.top5:.2%}"))
    if result.top1 is not None:
        rows.append(("own classifier", "", "", f"{result.top1:.2%}", ""))
    say_columns(("features", "protocol", "setting", "top-1", "top-5"), rows)
    say(f"{result.scores[0].count:,} images, fitted on {result.num_train:,}")


def _dense(run: str, out: Path | None, given: dict[str, Any], *, as_json: bool) -> None:
    from mambar.analysis.draw.color_maps import encode_png
    from mambar.atomic_files import write_files
    from mambar.hub.config_file import json_bytes
    from mambar.recipes.dense_features import evaluate_dense
    from mambar.segmentation.overlays import add_legend

    result = evaluate_dense(run, **given)
    if result is None:  # Another process prints the result.
        return
    if out is not None:
        shares = (result.masks == label for label in range(len(result.classes)))
        legend = [
            (name, color, float(share.mean()))
            for name, color, share in zip(result.classes, result.palette, shares, strict=True)
        ]
        rows = ("image", "mask", *(score.protocol for score in result.scores))
        picture = encode_png(add_legend(result.picture(), legend, row_names=rows))
        write_files(out, {"segmentation.png": picture, "segmentation.json": json_bytes(result.to_dict())})
    if as_json:
        print_json(result.to_dict())
        return
    rows = []
    for score in result.scores:
        setting = f"k={score.setting}" if score.protocol == "segmentation_knn" else f"{score.setting:g}"
        interval = f"{score.low:.2%} to {score.high:.2%}"
        rows.append(
            (score.protocol, setting, f"{score.result.miou:.2%}", interval, f"{score.result.pixel_accuracy:.2%}")
        )
    say_columns(("protocol", "setting", "mIoU", "95 % interval", "pixel accuracy"), rows)
    size = "x".join(map(str, result.img_size))
    say(f"{result.scores[0].count:,} images of {size} pixels, fitted on {result.num_train:,}")


def _classifier(run: str, batch_size: int, crop_pct: float | None, common: dict[str, Any], *, as_json: bool) -> None:
    from mambar.recipes.evaluate_run import evaluate_run

    result = evaluate_run(run, batch_size=batch_size, crop_pct=crop_pct, **common)
    if as_json:
        print_json(result.to_dict())
        return
    say(f"top-1 {result.top1:.2%}  top-5 {result.top5:.2%}  loss {result.loss:.4f}  ({result.count:,} images)")
    say_table(_shares(result.per_class, missing="no images"), indent="  ")


def _corruptions(
    run: str, kinds: str, severities: str, out: Path | None, given: dict[str, Any], *, as_json: bool
) -> None:
    from mambar.analysis.draw.corruption_charts import corruption_charts
    from mambar.analysis.draw.plots import draw_chart_grid, png
    from mambar.analysis.figure_label import FigureLabel
    from mambar.atomic_files import write_files
    from mambar.data.transforms.corruptions import KINDS
    from mambar.hub.config_file import json_bytes
    from mambar.recipes.evaluate_robustness import evaluate_corruptions

    chosen, levels = KINDS if kinds == "all" else tuple(kinds.split(",")), numbers("--severities", severities, int)
    result = evaluate_corruptions(run, kinds=chosen, severities=levels, progress=logger.info, **given)
    content = {"format_version": 1, **asdict(result)}
    if out is not None:
        data = f"{result.data}, {result.count} images"
        label = FigureLabel(model=Path(run).name, data=data, metric=result.library, seed=result.seed)
        chart = png(draw_chart_grid(corruption_charts(result.clean, result.top1, label)))
        write_files(out, {"corruptions.png": chart, "corruptions.json": json_bytes(content)})
    if as_json:
        print_json(content)
        return
    width = max(map(len, chosen))
    say(f"{'severity':{width}}  " + "".join(f"{level:>8}" for level in levels))
    for kind, row in result.top1.items():
        say(f"{kind:{width}}  " + "".join(f"{value:8.1%}" for value in row.values()))
    say(f"clean {result.clean:.2%}  mean {result.mean:.2%}  ({result.count:,} images, {result.library})")


def _imagenet_variant(run: str, batch_size: int, common: dict[str, Any], *, as_json: bool) -> None:
    from mambar.recipes.evaluate_robustness import evaluate_imagenet_variant

    given = {name: common[name] for name in ("data_options", "device", "num_workers")}
    result = evaluate_imagenet_variant(run, batch_size=batch_size, **given)
    if as_json:
        print_json({"format_version": 1, **asdict(result)})
        return
    say(
        f"top-1 {result.top1:.2%}  top-5 {result.top5:.2%}  ({result.count:,} images, {result.num_classes} classes; "
        f"{result.left_out:,} images of other classes left out)"
    )


def _segmenter(
    run: str, changes: Mapping[str, Any], scales: str | None, common: dict[str, Any], *, as_json: bool
) -> None:
    from dataclasses import replace

    from mambar.segmentation.evaluator import evaluate_run
    from mambar.segmentation.files import load_with_inference

    given = {name: value for name, value in changes.items() if value is not None}
    if scales is not None:
        given["scales"] = numbers("--scales", scales)
    inference = replace(load_with_inference(run)[1], **given) if given else None
    result = evaluate_run(run, inference=inference, **common)
    if as_json:
        print_json(result.to_dict())
        return
    say(f"mIoU {result.miou:.2%}  pixel accuracy {result.pixel_accuracy:.2%}  boundary F {result.boundary_f:.2%}")
    say_table(_shares(result.per_class, missing="not present"), indent="  ")


def _detector(run: str, common: dict[str, Any], *, as_json: bool) -> None:
    from mambar.detection.evaluator import evaluate_run

    result = evaluate_run(run, **common)
    if as_json:
        print_json(result.to_dict())
        return
    for kind in ("box", "mask"):
        found = {name.removeprefix(f"{kind}_"): value for name, value in result.metrics.items() if kind in name}
        if found:
            shown = (f"{name.replace('ap', 'AP').replace('_', ' ')} {value:.2%}" for name, value in found.items())
            say(f"{kind}: {'  '.join(each for each in shown if 'nan' not in each)}")
    say(f"{result.num_objects:,} objects in {result.num_images:,} images")
    shares = {name: None if math.isnan(own["box_ap"]) else own["box_ap"] for name, own in result.per_class.items()}
    say_table(_shares(shares, missing="no objects"), indent="  ")


def _shares(shares: Mapping[str, float | None], *, missing: str) -> list[tuple[str, str]]:
    return [(name, missing if share is None else f"{share:7.2%}") for name, share in shares.items()]
