"""The procedural scenes of `Shapes` with a box and a mask for each object."""

import inspect
from typing import Any

import torch

from mambar.data.dataset import Sample
from mambar.data.detection.object_masks import TargetObject, object_targets
from mambar.data.synthetic.shapes import Shapes


class ShapeObjects:
    """Scenes with their objects; boxes and masks are of what is visible. Options: the fields of `Shapes`."""

    name = "shapes"
    __signature__ = inspect.signature(Shapes)

    def __init__(self, **options: Any) -> None:
        self.shapes = Shapes(**options)
        self.classes = self.shapes.classes

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Sample:
        pixels, instances, labels = self.shapes.draw(index)
        masks = [(label, instances == number) for number, label in enumerate(labels, 1)]
        targets = object_targets([TargetObject.of_mask(label, mask) for label, mask in masks if mask.any()])
        return Sample(torch.from_numpy(pixels), labels[0], targets=targets)

    def fingerprint(self) -> str:
        return self.shapes.fingerprint()
