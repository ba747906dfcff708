"""The report of a segmentation run: numbers a class, the confusion matrix, the best and the worst images, curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import UInt8

from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import photograph, png
from mambar.analysis.draw.confusion import confusion_table
from mambar.analysis.draw.curves import collect_curves, draw_curves, draw_family, families
from mambar.analysis.draw.plots import png as figure_png
from mambar.analysis.draw.plots import svg
from mambar.data.loading.unreadable_images import evenly_spaced_samples
from mambar.data.segmentation.masks import IGNORE, Color
from mambar.data.transforms.segmentation import MaskChannelDataset
from mambar.evaluation.segmentation import SegmentationResult, image_iou
from mambar.hub.files import write_atomically
from mambar.segmentation.inference import Inference, predict
from mambar.segmentation.overlays import colorize_labels, draw_errors, draw_overlay
from mambar.segmentation.segmenter import Segmenter
from mambar.training.metrics_log import read_metrics
from mambar.training.recipe import Recipe
from mambar.training.task import EvalResult
from mambar.version import __version__

# Images looked at for the best and the worst, and how many of each are shown.
_LOOKED_AT: Final = 48
_SHOWN: Final = 4
# Pixels of a picture's longer side.
_LONGEST: Final = 384


def write_report(
    out: Path,
    *,
    recipe: Recipe,
    model: Segmenter,
    inference: Inference,
    eval_result: EvalResult,
    val_set: MaskChannelDataset,
) -> Path:
    """Writes report.html and curves.png of the run in `out`; `model` carries its classes, palette, preprocessing."""
    result = eval_result.details
    assert isinstance(result, SegmentationResult)
    colors = val_set.palette
    curves = collect_curves({recipe.name: read_metrics(out / "metrics.jsonl")})
    title = f"mambar: {recipe.name}"
    content = [
        html.element("h1", title),
        html.tiles(_summary(result, model, len(val_set))),
        _curve_section(curves),
        _class_section(result, colors),
        html.section("Confusion matrix", confusion_table(result.confusion, result.classes, unit="pixel")),
        _image_section(model, inference, val_set),
        html.section("Recipe", html.pairs(html.flattened(recipe.to_flat_dict()))),
        html.element(
            "footer", f"Written by mambar {__version__}. This page loads nothing from elsewhere.", class_="note"
        ),
    ]
    write_atomically(out / "curves.png", figure_png(draw_curves(curves, title=title)))
    write_atomically(out / "report.html", html.page(title, *content))
    return out / "report.html"


def _summary(result: SegmentationResult, model: Segmenter, images: int) -> dict[str, object]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "mIoU": f"{result.miou:.2%}",
        "pixel accuracy": f"{result.pixel_accuracy:.2%}",
        "boundary F-score": f"{result.boundary_f:.2%}",
        "validation images": f"{images:,}",
        "parameters": f"{parameters:,}",
    }


def _curve_section(curves: list) -> html.Html:
    if not curves:
        return html.section("Curves", html.element("p", "No numbers were logged yet."))
    charts = (
        html.figure(
            html.image(svg(draw_family(curves, name)), description=f"{name} over time", media_type="image/svg+xml"),
            caption="",
        )
        for name in families(curves)
    )
    return html.section("Curves", html.element("div", *charts, class_="charts"))


def _class_section(result: SegmentationResult, colors: Sequence[Color]) -> html.Html:
    total = max(result.pixels, 1)
    rows = []
    for label, name in enumerate(result.classes):
        rows.append(
            (
                html.join([_swatch(colors[label]), name]),
                _percent(result.per_class[name]),
                _percent(result.per_class_accuracy[name]),
                _percent(result.per_class_boundary[name]),
                f"{int(result.confusion[label].sum()) / total:.2%}",
            )
        )
    header = ("class", "IoU", "accuracy", "boundary F", "share of pixels")
    note = "IoU = right / (right + missed + false). – : the class occurs neither in the masks nor in the predictions."
    return html.section("Classes", html.table(header, rows), html.element("p", note, class_="note"))


def _swatch(color: Color) -> html.Html:
    hexadecimal = bytes(color).hex()
    style = (
        f"display:inline-block;width:.8em;height:.8em;margin-right:.45em;background:#{hexadecimal};"
        "border:1px solid #5a6675;print-color-adjust:exact;-webkit-print-color-adjust:exact"
    )
    return html.element("span", style=style)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _image_section(model: Segmenter, inference: Inference, val_set: MaskChannelDataset) -> html.Html:
    looked = _looked_at(model, inference, val_set)
    if not looked:
        return html.Html("")
    looked.sort(key=lambda each: each[0])
    shown = min(_SHOWN, (len(looked) + 1) // 2)
    palette = val_set.palette
    content: list[object] = [
        html.element(
            "p",
            f"{len(looked)} validation images, spread over the set, sorted by their own mIoU. Red: wrong pixels.",
            class_="note",
        )
    ]
    for heading, part in (("Worst", looked[:shown]), ("Best", looked[::-1][:shown])):
        content.append(html.element("h3", heading))
        content += [_row(iou, stacked, predicted, palette, model) for iou, stacked, predicted in part]
    return html.section("Images", *content)


def _looked_at(
    model: Segmenter, inference: Inference, val_set: MaskChannelDataset
) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    """(mIoU, image with labels, prediction) of some validation images."""
    assert model.preprocessing is not None
    found = []
    was_training = model.training
    model.eval()
    for stacked in (sample.image for sample in evenly_spaced_samples(val_set, _LOOKED_AT)):
        predicted, _ = predict(model, stacked[:3], inference, preprocessing=model.preprocessing)
        found.append((image_iou(predicted, stacked[3], model.num_classes), stacked, predicted))
    model.train(was_training)
    return found


def _row(
    iou: float, stacked: torch.Tensor, predicted: torch.Tensor, palette: Sequence[Color], model: Segmenter
) -> html.Html:
    image, labels, guess = stacked[:3].numpy(), stacked[3].numpy(), predicted.numpy()
    pictures = {
        "image": photograph(image, max_size=_LONGEST),
        "truth": (_flat(colorize_labels(labels, palette)), "image/png"),
        "prediction": photograph(np.moveaxis(draw_overlay(image, guess, palette), -1, 0), max_size=_LONGEST),
        "errors": (_flat(draw_errors(guess, labels)), "image/png"),
    }
    small = max(labels.shape) <= 96
    cells = (
        html.element(
            "div",
            html.element("div", name, class_="name"),
            html.image(data, description=name, media_type=kind, class_="nearest" if small else None),
        )
        for name, (data, kind) in pictures.items()
    )
    present = sorted({*np.unique(labels).tolist(), *np.unique(guess).tolist()} - {IGNORE})
    names = model.classes or ()
    legend = html.join([html.element("span", _swatch(palette[label]), names[label], " \u2003") for label in present])
    caption = html.join([html.element("b", f"mIoU {iou:.1%}"), " \u2003", legend])
    return html.figure(html.element("div", *cells, class_="panel", style="--columns:4"), caption=caption)


def _flat(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A PNG of plain colors, made smaller by leaving pixels out: colors must not mix."""
    step = -(-max(picture.shape[:2]) // _LONGEST)
    return png(np.ascontiguousarray(picture[::step, ::step]))
