"""The report of a segmentation run: curves, per-class metrics, confusion matrix, best and worst images."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import UInt8

from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import encode_png, photograph
from mambar.analysis.draw.confusion import confusion_table
from mambar.data.loading.unreadable_images import evenly_spaced_samples
from mambar.data.segmentation.masks import IGNORE, Color
from mambar.data.transforms.segmentation import MaskChannelDataset
from mambar.evaluation.segmentation import SegmentationResult, image_iou
from mambar.nn.eval_mode import eval_mode
from mambar.segmentation.inference import Inference, predict
from mambar.segmentation.overlays import colorize_labels, draw_errors, draw_overlay
from mambar.segmentation.segmenter import Segmenter

# Validation images among which the best and the worst are chosen, and how many of each are shown.
_NUM_CANDIDATES: Final = 48
_NUM_SHOWN: Final = 4
# Pixels of the longer side of a displayed image.
_MAX_SIZE: Final = 384


def contents(
    model: Segmenter, inference: Inference, *, result: SegmentationResult, val_set: MaskChannelDataset
) -> dict[str, Any]:
    """The arguments of `write_run_report`; `model` has classes, palette and preprocessing."""
    return {
        "summary": _summary(result, model, len(val_set)),
        "sections": [
            _class_section(result, val_set.palette),
            html.section("Confusion matrix", confusion_table(result.confusion, result.classes, unit="pixel")),
            _image_section(model, inference, val_set),
        ],
    }


def _summary(result: SegmentationResult, model: Segmenter, num_images: int) -> dict[str, object]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "mIoU": f"{result.miou:.2%}",
        "pixel accuracy": f"{result.pixel_accuracy:.2%}",
        "boundary F-score": f"{result.boundary_f:.2%}",
        "validation images": f"{num_images:,}",
        "parameters": f"{parameters:,}",
    }


def _class_section(result: SegmentationResult, palette: Sequence[Color]) -> html.Html:
    total = max(result.pixels, 1)
    rows = []
    for label, name in enumerate(result.classes):
        rows.append(
            (
                html.join([_swatch(palette[label]), name]),
                _percent(result.per_class[name]),
                _percent(result.per_class_accuracy[name]),
                _percent(result.per_class_boundary[name]),
                f"{int(result.confusion[label].sum()) / total:.2%}",
            )
        )
    header = ("class", "IoU", "accuracy", "boundary F", "fraction of pixels")
    note = "IoU = TP / (TP + FN + FP). –: the class occurs neither in the masks nor in the predictions."
    return html.section("Classes", html.table(header, rows), html.element("p", note, class_="note"))


def _swatch(color: Color) -> html.Html:
    hexadecimal = bytes(color).hex()
    style = (
        f"display:inline-block;width:.8em;height:.8em;margin-right:.45em;background:#{hexadecimal};"
        "border:1px solid #5a6675;print-color-adjust:exact;-webkit-print-color-adjust:exact"
    )
    return html.element("span", style=style)


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.2%}"


def _image_section(model: Segmenter, inference: Inference, val_set: MaskChannelDataset) -> html.Html:
    images = _predicted_images(model, inference, val_set)
    if not images:
        return html.Html("")
    images.sort(key=lambda each: each[0])
    shown = min(_NUM_SHOWN, (len(images) + 1) // 2)
    palette = val_set.palette
    content: list[object] = [
        html.element(
            "p", f"{len(images)} evenly spaced validation images, sorted by mIoU. Red: wrong pixels.", class_="note"
        )
    ]
    for heading, part in (("Worst", images[:shown]), ("Best", images[::-1][:shown])):
        content.append(html.element("h3", heading))
        content += [_row(iou, stacked, predicted, palette, model) for iou, stacked, predicted in part]
    return html.section("Images", *content)


def _predicted_images(
    model: Segmenter, inference: Inference, val_set: MaskChannelDataset
) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    """(mIoU, image with labels, predicted labels) of evenly spaced validation images."""
    assert model.preprocessing is not None
    found = []
    with eval_mode(model):
        for stacked in (sample.image for sample in evenly_spaced_samples(val_set, _NUM_CANDIDATES)):
            predicted, _ = predict(model, stacked[:3], inference, preprocessing=model.preprocessing)
            found.append((image_iou(predicted, stacked[3], model.num_classes), stacked, predicted))
    return found


def _row(
    iou: float, stacked: torch.Tensor, predicted: torch.Tensor, palette: Sequence[Color], model: Segmenter
) -> html.Html:
    image, labels, predicted_labels = stacked[:3].numpy(), stacked[3].numpy(), predicted.numpy()
    overlay = draw_overlay(image, predicted_labels, palette)
    pictures = {
        "image": photograph(image, max_size=_MAX_SIZE),
        "ground truth": (_label_png(colorize_labels(labels, palette)), "image/png"),
        "prediction": photograph(np.moveaxis(overlay, -1, 0), max_size=_MAX_SIZE),
        "errors": (_label_png(draw_errors(predicted_labels, labels)), "image/png"),
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
    present = sorted({*np.unique(labels).tolist(), *np.unique(predicted_labels).tolist()} - {IGNORE})
    names = model.classes or ()
    legend = html.join([html.element("span", _swatch(palette[label]), names[label], " \u2003") for label in present])
    caption = html.join([html.element("b", f"mIoU {iou:.1%}"), " \u2003", legend])
    return html.figure(html.element("div", *cells, class_="panel", style="--columns:4"), caption=caption)


def _label_png(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A PNG downsampled by nearest neighbor, since interpolation would create colors that are no class."""
    step = -(-max(picture.shape[:2]) // _MAX_SIZE)
    return encode_png(np.ascontiguousarray(picture[::step, ::step]))
