"""Unreadable images are skipped, counted over all workers and named once; too many end the run."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mambar.data.dataset import ImageDataset, Sample
from mambar.errors import DataError, ImageError

logger = logging.getLogger("mambar.data")

# A run ends when more than both are unreadable.
MAX_UNREADABLE = 10
MAX_UNREADABLE_FRACTION = 0.01
_OTHER_CLASS_ATTEMPTS = 100


class UnreadableImages:
    """Reads samples and records the unreadable ones in memory that worker processes share.

    With `substitute` (training) the next readable image of the same class is returned in place of an unreadable one,
    so that a resumed run reads the same. Without (evaluation) the ImageError is raised.
    """

    def __init__(self, labels: Int64[np.ndarray, "samples"], *, source: str, substitute: bool) -> None:
        self.labels = labels
        self.source = source
        self.substitute = substitute
        self._bad = torch.zeros(len(labels), dtype=torch.uint8).share_memory_()

    @property
    def count(self) -> int:
        """Number of samples that were unreadable so far."""
        return int(self._bad.sum())

    @property
    def indices(self) -> Int64[Tensor, "bad"]:
        """Indices of the samples that were unreadable so far."""
        return self._bad.nonzero()[:, 0]

    def read(self, read: Callable[[int], Sample], index: int) -> Sample:
        """`read(index)` or its substitute; DataError if too many images are unreadable, or no substitute is found."""
        try:
            return self._read(read, index)
        except ImageError as error:
            if not self.substitute:
                raise
            first = error
        for other in self._others(index):
            try:
                return self._read(read, other)
            except ImageError:
                continue
        raise DataError(f"no image in {self.source} can be read; the first: {first}") from first

    def _read(self, read: Callable[[int], Sample], index: int) -> Sample:
        try:
            return read(index)
        except ImageError as error:
            self._report(index, error)
            raise

    def _report(self, index: int, error: ImageError) -> None:
        if self._bad[index]:
            return
        self._bad[index] = 1
        logger.warning("skipped an unreadable image: %s", error)
        bad, length = self.count, len(self._bad)
        if bad > MAX_UNREADABLE and bad > MAX_UNREADABLE_FRACTION * length:
            raise DataError(
                f"{bad} of the {length} images in {self.source} cannot be read (at most {MAX_UNREADABLE} or "
                f"{MAX_UNREADABLE_FRACTION:.0%} may); the last: {error}"
            ) from error

    def _others(self, index: int) -> Iterator[int]:
        """The other samples of the class from the next one on, then some of any class."""
        members = np.flatnonzero(self.labels == self.labels[index])
        place = int(np.searchsorted(members, index))
        yield from (int(member) for member in np.roll(members, -place - 1)[:-1])
        length = len(self.labels)
        yield from ((index + step) % length for step in range(1, min(length, _OTHER_CLASS_ATTEMPTS)))


class SkippingDataset(ABC):
    """The base of datasets that record unreadable images in `unreadable`; `labels` has one label per sample."""

    def __init__(self, labels: Int64[np.ndarray, "samples"], split: str, *, source: str) -> None:
        self.labels, self.split = labels, split
        self.unreadable = UnreadableImages(labels, source=source, substitute=split == "train")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return self.unreadable.read(self._read, index)

    @abstractmethod
    def _read(self, index: int) -> Sample:
        """The sample; raises ImageError if its image cannot be read."""


def readable_samples(dataset: ImageDataset, indices: Iterable[int]) -> Iterator[tuple[int, Sample]]:
    """(index, sample) of the readable samples at `indices`; the dataset counts and names the unreadable ones."""
    for index in indices:
        try:
            sample = dataset[index]
        except ImageError:
            continue
        yield index, sample


def evenly_spaced_samples(dataset: ImageDataset, count: int) -> list[Sample]:
    """The readable ones of `count` samples at an even stride; DataError where there is none."""
    count = min(count, len(dataset))
    places = (number * len(dataset) // count for number in range(count))
    samples = [sample for _, sample in readable_samples(dataset, places)]
    if not samples:
        raise DataError(f"none of {count} images of {dataset.name} can be read; replace or remove them.")
    return samples
