"""Images that cannot be read: counted once over all worker processes, named once; too many end the run."""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mambar.data.dataset import Sample
from mambar.errors import DataError, ImageError

logger = logging.getLogger("mambar.data")

# A run ends when more than this many, and more than this share, are bad.
MAX_UNREADABLE = 10
MAX_UNREADABLE_FRACTION = 0.01
_STRANGERS = 100


class UnreadableImages:
    """Reads samples and keeps account of the unreadable ones; the marks lie in memory that workers share.

    With `substitute` (training) another image of the same class stands for a bad one: the next readable one,
    so always the same and a resumed run meets it again. Without (evaluation) the ImageError goes on.
    """

    def __init__(self, labels: Int64[np.ndarray, "samples"], *, source: str, substitute: bool) -> None:
        self.labels = labels
        self.source = source
        self.substitute = substitute
        self._bad = torch.zeros(len(labels), dtype=torch.uint8).share_memory_()

    @property
    def count(self) -> int:
        """How many different samples were unreadable so far."""
        return int(self._bad.sum())

    @property
    def indices(self) -> Int64[Tensor, "bad"]:
        """The samples that were unreadable so far."""
        return self._bad.nonzero()[:, 0]

    def read(self, read: Callable[[int], Sample], index: int) -> Sample:
        """`read(index)`, or what stands for it; DataError when too many are bad, or none can stand in."""
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
        """The rest of the sample's class from the next one on, then a few of any class."""
        members = np.flatnonzero(self.labels == self.labels[index])
        place = int(np.searchsorted(members, index))
        yield from (int(member) for member in np.roll(members, -place - 1)[:-1])
        length = len(self.labels)
        yield from ((index + step) % length for step in range(1, min(length, _STRANGERS)))
