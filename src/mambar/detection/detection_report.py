"""The report of a detection run: numbers of each class, and images with objects and detections."""

import math
from typing import Any, Final

import numpy as np
import torch

from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import photograph_html
from mambar.data.dataset import ImageDataset, Sample
from mambar.data.detection.object_masks import decoded_masks, target_objects
from mambar.data.loading.unreadable_images import evenly_spaced_samples
from mambar.detection.detect import detect
from mambar.detection.detector import Detector
from mambar.detection.drawing import draw_objects
from mambar.evaluation.detection import MEASURES, DetectionResult

_NUM_IMAGES: Final = 8
# Pixels of the longer side of a displayed image, and the smallest score of a displayed detection.
_MAX_SIZE: Final = 512
_THRESHOLD: Final = 0.5


def contents(model: Detector, *, result: DetectionResult, val_set: ImageDataset) -> dict[str, Any]:
    """The arguments of `write_run_report`."""
    kinds = ("box", "mask") if model.config.masks else ("box",)
    summary = {f"{kind} AP50": _percent(result.metrics[f"{kind}_ap50"]) for kind in kinds}
    summary |= {f"{kind} AP": _percent(result.metrics[f"{kind}_ap"]) for kind in kinds}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    counts = {"validation images": result.num_images, "objects": result.num_objects, "parameters": parameters}
    return {
        "summary": {**summary, **{name: f"{count:,}" for name, count in counts.items()}},
        "sections": [_numbers(result, kinds), _classes(result, kinds), _images(model, val_set)],
    }


def _numbers(result: DetectionResult, kinds: tuple[str, ...]) -> html.Html:
    rows = [(kind, *(_percent(result.metrics[f"{kind}_{name}"]) for name in MEASURES)) for kind in kinds]
    note = (
        "COCO's evaluation. AP: mean over IoU thresholds 0.5 to 0.95. Small: below 32² pixels of area, large: above "
        "96². –: no such object."
    )
    header = ("", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
    return html.section("Average precision", html.table(header, rows), html.element("p", note, class_="note"))


def _classes(result: DetectionResult, kinds: tuple[str, ...]) -> html.Html:
    names = [f"{kind}_{measure}" for kind in kinds for measure in ("ap", "ap50")]
    rows = [(name, *(_percent(own[each]) for each in names)) for name, own in result.per_class.items()]
    header = ("class", *(f"{kind} {measure}" for kind in kinds for measure in ("AP", "AP50")))
    return html.section("Classes", html.table(header, rows))


def _images(model: Detector, val_set: ImageDataset) -> html.Html:
    samples = evenly_spaced_samples(val_set, _NUM_IMAGES)
    note = f"{len(samples)} evenly spaced validation images; detections with a score of at least {_THRESHOLD:.0%}."
    return html.section("Images", html.element("p", note, class_="note"), *(_row(model, each) for each in samples))


def _row(model: Detector, sample: Sample) -> html.Html:
    objects = target_objects(sample.targets)
    labels = [each.label for each in objects]
    boxes = torch.tensor([each.box for each in objects]).reshape(-1, 4)
    names = model.classes or ()
    height, width = sample.image.shape[1:]

    def mask(index: int) -> np.ndarray | None:
        found = objects[index].segmentation
        return None if found is None else decoded_masks([found], height, width)[0].numpy().astype(bool)

    captions = [names[label] + " (crowd)" * each.crowd for label, each in zip(labels, objects, strict=True)]
    pictures = {
        "objects": draw_objects(sample.image, boxes, labels, captions, mask),
        "detections": detect(model, sample.image, threshold=_THRESHOLD).picture(),
    }
    cells = (
        html.element(
            "div",
            html.element("div", name, class_="name"),
            photograph_html(np.moveaxis(picture, -1, 0), name, max_size=_MAX_SIZE),
        )
        for name, picture in pictures.items()
    )
    return html.figure(html.element("div", *cells, class_="panel", style="--columns:2"), caption="")


def _percent(fraction: float) -> str:
    return "–" if math.isnan(fraction) else f"{fraction:.2%}"
