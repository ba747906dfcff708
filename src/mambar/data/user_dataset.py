"""Adapts a user's dataset object to `ImageDataset`."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from mambar.data.dataset import ImageDataset, Sample, Subset, stratified_split
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.data.segmentation.masks import Color, palette
from mambar.errors import DataError, ImageError
from mambar.messages import one_line

logger = logging.getLogger("mambar.data")

# Samples that enter a fingerprint.
_FINGERPRINT_SAMPLES = 16


class UserDataset(SkippingDataset):
    """A user's object with `__len__`, `__getitem__` and `classes` as an `ImageDataset`, optionally only `indices`.

    An item is a `Sample`, or (image, label or mask) as in torchvision; an image is a uint8 tensor (channels, height,
    width) or a Pillow image. Images that raise `OSError` or `ImageError` are handled as in `ImageFolder`.

    Optional attributes of the object: `name`; `palette`; `labels` or `targets`, a label for each item; `fingerprint()`.
    Without the last, the fingerprint is the sha256 of its class, `classes`, length and 16 evenly spaced items.
    """

    def __init__(
        self, dataset: Any, *, split: str, name: str = "", indices: Int[np.ndarray, "samples"] | None = None
    ) -> None:
        _check_contract(dataset)
        self.dataset = dataset
        self.name = str(getattr(dataset, "name", "") or name or type(dataset).__name__)
        self.classes = tuple(str(each) for each in dataset.classes)
        self.palette: tuple[Color, ...] = tuple(getattr(dataset, "palette", ()) or palette(len(self.classes)))
        self.indices = np.arange(len(dataset)) if indices is None else indices
        labels = stored_labels(dataset)
        labels = np.zeros(len(self.indices), dtype=np.int64) if labels is None else labels[self.indices]
        super().__init__(labels, split, source=self.name)

    def fingerprint(self) -> str:
        """The object's own fingerprint, or that of its class, `classes`, length and 16 items; and of the indices."""
        digest = hashlib.sha256(self.indices.astype("<i8").tobytes())
        own = getattr(self.dataset, "fingerprint", None)
        if callable(own):
            digest.update(str(own()).encode())
            return digest.hexdigest()
        kind = type(self.dataset)
        digest.update(repr((kind.__module__, kind.__qualname__, self.classes, len(self))).encode())
        for index in np.unique(np.linspace(0, len(self) - 1, _FINGERPRINT_SAMPLES).astype(int)) if len(self) else ():
            try:
                sample = self._read(int(index))
            except ImageError:
                continue
            digest.update(repr((int(index), tuple(sample.image.shape), sample.label)).encode())
            for pixels in (sample.image, sample.mask):
                digest.update(b"" if pixels is None else pixels.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _read(self, index: int) -> Sample:
        place = int(self.indices[index])
        try:
            item = self.dataset[place]
        # Pillow's and most readers' error for a damaged file.
        except OSError as error:
            raise ImageError(f"item {place} of {self.name} cannot be read: {one_line(str(error))}.") from error
        if isinstance(item, Sample):
            return item
        if not isinstance(item, Sequence) or len(item) != 2:
            raise DataError(f"item {place} of {self.name} is a {type(item).__name__}; use a Sample or (image, label).")
        image = _pixels(item[0], f"image {place} of {self.name}")
        image = image[None] if image.ndim == 2 else image
        if isinstance(item[1], int | np.integer) or (isinstance(item[1], Tensor) and item[1].ndim == 0):
            return Sample(image, int(item[1]))
        return Sample(image, 0, _pixels(item[1], f"mask {place} of {self.name}"))


def split_object(data: Any, *, split: str, val_fraction: float = 0.2, split_seed: int = 0) -> ImageDataset:
    """The split of a mapping from split to dataset, or of one dataset object, `val_fraction` of which is held out."""
    if isinstance(data, Mapping):
        if split not in data:
            raise DataError(f"data has no split {split!r}; it has {one_line(', '.join(map(str, data)))}.")
        chosen = data[split]
        return chosen if isinstance(chosen, ImageDataset) else UserDataset(chosen, split=split)
    _check_contract(data)
    labels = stored_labels(data)
    if labels is None and len(data) and UserDataset(data, split="val")[0].mask is not None:
        labels = np.zeros(len(data), dtype=np.int64)
    if labels is None:
        logger.info("%s has no labels or targets; every item is read once.", type(data).__name__)
        whole = UserDataset(data, split="val")
        labels = np.array([_label(whole, index) for index in range(len(whole))], dtype=np.int64)
    part = stratified_split(labels, fraction=val_fraction, seed=split_seed)[split == "val"]
    logger.info("%s has one split; %.0f %% of every class are held out.", type(data).__name__, 100 * val_fraction)
    if isinstance(data, ImageDataset):
        return Subset(data, part, name=data.name)
    return UserDataset(data, split=split, indices=part)


def stored_labels(dataset: Any) -> Int64[np.ndarray, "samples"] | None:
    """The object's `labels` or `targets` (torchvision); None where it has neither."""
    for name in ("labels", "targets"):
        labels = getattr(dataset, name, None)
        if labels is not None and np.ndim(labels) == 1 and len(labels) == len(dataset):
            return np.asarray(labels, dtype=np.int64)
    return None


def _label(dataset: ImageDataset, index: int) -> int:
    try:
        return dataset[index].label
    # It stays in the training split, which replaces it.
    except ImageError:
        return -1


def _check_contract(dataset: Any) -> None:
    missing = [name for name in ("__len__", "__getitem__", "classes") if getattr(dataset, name, None) is None]
    if missing:
        raise DataError(
            f"data={one_line(repr(dataset))} has no {missing[0]}; give a name, a path, or an "
            "object with __len__, __getitem__ and classes."
        )


def _pixels(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        pixels = value
    else:
        array = np.asarray(value)
        pixels = torch.from_numpy(np.array(array.transpose(2, 0, 1) if array.ndim == 3 else array))
    if pixels.dtype != torch.uint8:
        raise DataError(f"{name} is {pixels.dtype}; use uint8 pixels without normalization.")
    return pixels
