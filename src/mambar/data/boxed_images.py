"""Images with object boxes, and boxes as masks.

A box is (x0, y0, x1, y1) in pixels of the stored image, right and bottom exclusive, as in torchvision.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from mambar.data.dataset import Sample, sha256_of
from mambar.data.loading.file_tree import FileTree
from mambar.data.loading.images import read_image
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.data.names import PackedNames
from mambar.errors import DataError
from mambar.image_file import MAX_PIXELS

Boxes = Float32[Tensor, "boxes 4"]
# Class index and box of an object.
Object = tuple[int, tuple[float, float, float, float]]


class BoxedImages(SkippingDataset):
    """Images whose samples have the targets `boxes` and `box_labels`; their label is the class of the largest box.

    `objects` are those of each file; files without an object are left out. A transform of the image alone, such as a
    random crop, leaves the boxes unchanged.
    """

    def __init__(
        self,
        tree: FileTree,
        split: str,
        *,
        name: str,
        classes: tuple[str, ...],
        objects: Mapping[str, Sequence[Object]],
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        given = {path: found for path, found in objects.items() if found}
        if not given:
            raise DataError(f"{tree.name} lists no image with an object for {split}; check its annotations.")
        areas = {path: [(x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1) in found] for path, found in given.items()}
        labels = [found[int(np.argmax(areas[path]))][0] for path, found in given.items()]
        super().__init__(np.array(labels, dtype=np.int64), split, source=tree.name)
        self.tree, self.name, self.classes, self.max_pixels = tree, name, classes, max_pixels
        self._paths = PackedNames.from_names(given)
        # All boxes in one tensor: worker processes would copy a list.
        self._boxes = torch.tensor([box for found in given.values() for _, box in found], dtype=torch.float32)
        self._box_labels = torch.tensor([label for found in given.values() for label, _ in found])
        self._ends = np.cumsum([len(found) for found in given.values()])

    def fingerprint(self) -> str:
        """sha256 of classes, paths, labels and boxes; file contents are not read."""
        arrays = (self._paths.text, self._ends, self._box_labels.numpy(), self._boxes.numpy())
        return sha256_of(repr(self.classes), *arrays)

    def _read(self, index: int) -> Sample:
        path = self._paths[index]
        # Annotations count the pixels as stored.
        data, name = self.tree.read(path), f"{self.tree.name}/{path}"
        image = read_image(data, name=name, apply_exif_orientation=False, max_pixels=self.max_pixels)
        own = slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))
        targets = {"boxes": self._boxes[own], "box_labels": self._box_labels[own]}
        return Sample(image, int(self.labels[index]), targets=targets)


def object_mask(sample: Sample) -> UInt8[Tensor, "height width"] | None:
    """The sample's mask, or else 1 inside any of its boxes; None where it has neither."""
    if sample.mask is not None or "boxes" not in sample.targets:
        return sample.mask
    mask = torch.zeros(sample.image.shape[1:], dtype=torch.uint8)
    for x0, y0, x1, y1 in sample.targets["boxes"].round().int().clamp_min(0).tolist():
        mask[y0:y1, x0:x1] = 1
    return mask


def object_boxes(sample: Sample) -> Boxes:
    """The sample's boxes, or else one box around all objects of its mask; none where it has neither."""
    if "boxes" in sample.targets:
        return sample.targets["boxes"]
    if sample.mask is None or not sample.mask.any():
        return torch.zeros(0, 4)
    rows, cols = (sample.mask.amax(axis).nonzero().flatten() for axis in (1, 0))
    return torch.tensor([[cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]]).float()
