"""Images pasted at random positions on larger plain canvases, so that the background is known exactly."""

from dataclasses import replace

import numpy as np
import torch

from mambar.data.dataset import ImageDataset, Sample, sha256_of
from mambar.data.keys import key, numpy_generator
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.errors import DataError, ImageError


class CanvasDataset(SkippingDataset):
    """A dataset's images, each on a square canvas of one color; (seed, split, index) determine position and color.

    `size` is the canvas's side in pixels. The mask is 0 on the canvas, and label + 1 on the image, or the image's own
    mask. An image that is larger than the canvas is handled as an unreadable one in `ImageFolder`.
    """

    def __init__(self, dataset: ImageDataset, split: str, *, size: int, seed: int = 0) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DataError(f"canvas={size!r} is not a size in pixels; use an integer of 1 or more.")
        labels = np.asarray(getattr(dataset, "labels", np.zeros(len(dataset))), dtype=np.int64)
        super().__init__(labels, split, source=dataset.name)
        self.dataset, self.size, self.seed = dataset, size, seed
        self.name, self.classes = f"{dataset.name} on canvases of {size} pixels", dataset.classes

    def _read(self, index: int) -> Sample:
        sample = self.dataset[index]
        channels, height, width = sample.image.shape
        if max(height, width) > self.size:
            raise ImageError(
                f"image {index} of {self.dataset.name} has {width}×{height} pixels, more than the canvas={self.size}."
            )
        generator = numpy_generator(key(self.seed, "canvas", self.split, index))
        top = int(generator.integers(self.size - height + 1))
        left = int(generator.integers(self.size - width + 1))
        color = torch.from_numpy(generator.integers(0, 256, channels).astype("uint8"))
        image = color[:, None, None].repeat(1, self.size, self.size)
        image[:, top : top + height, left : left + width] = sample.image
        mask = torch.zeros(self.size, self.size, dtype=torch.uint8)
        own = sample.label + 1 if sample.mask is None else sample.mask
        mask[top : top + height, left : left + width] = own
        return replace(sample, image=image, mask=mask)

    def fingerprint(self) -> str:
        """sha256 of the dataset's fingerprint, split, size and seed."""
        return sha256_of(f"{self.dataset.fingerprint()} canvas {self.split} {self.size} {self.seed}")
