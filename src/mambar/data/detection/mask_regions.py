"""A segmentation dataset as a detection dataset: each connected region of a class is an object."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from mambar.data.dataset import ImageDataset, Sample
from mambar.data.detection.object_masks import TargetObject, object_targets
from mambar.data.segmentation.masks import IGNORE
from mambar.errors import DataError

# Smaller regions, as a fraction of the image, are left out: most are stray pixels of a mask.
_SMALLEST: Final = 0.001


class MaskRegions:
    """Connected regions (8 neighbors) of every class but the first, the background; ignored pixels are no object.

    Two objects of one class that touch are one region.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        if len(dataset.classes) < 2:
            raise DataError(f"{dataset.name} has one class; detection needs a background and a class of objects.")
        self.dataset, self.name, self.classes = dataset, dataset.name, dataset.classes[1:]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        assert sample.mask is not None
        return replace(sample, mask=None, targets=object_targets(list(_regions(sample.mask.numpy()))))

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()


def _regions(mask: UInt8[np.ndarray, "height width"]) -> Iterator[TargetObject]:
    for label in np.setdiff1d(mask, (0, IGNORE)).tolist():
        regions = np.zeros(mask.shape, dtype=np.int32)
        ndimage.label(mask == label, np.ones((3, 3)), output=regions)
        for number in range(1, int(regions.max()) + 1):
            found = TargetObject.of_mask(label - 1, regions == number)
            if found.area >= _SMALLEST * mask.size:
                yield found
