"""The procedural scenes of `Shapes` as a segmentation dataset."""

import inspect
from typing import Any

from mambar.data.dataset import Sample
from mambar.data.segmentation.masks import palette
from mambar.data.synthetic.shapes import Shapes


class ShapeMasks:
    """Scenes with a label for every pixel: 0 is the background, then the outlines. Options: the fields of `Shapes`."""

    name = "shapes"
    __signature__ = inspect.signature(Shapes)

    def __init__(self, **options: Any) -> None:
        self.shapes = Shapes(**options)
        self.classes = ("background", *self.shapes.classes)
        self.palette = ((90, 94, 102), *palette(len(self.shapes.classes)))

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Sample:
        sample = self.shapes[index]
        return Sample(sample.image, 0, sample.mask)

    def fingerprint(self) -> str:
        return self.shapes.fingerprint()
