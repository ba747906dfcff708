"""What a dataset is: numbered samples with named classes, and the ways to take a part of one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from mambar.data.keys import key, permutation
from mambar.errors import DataError
from mambar.messages import one_line


@dataclass(frozen=True)
class Sample:
    """One image as stored, its class, and its mask if there is one (0 = background, k + 1 = class k)."""

    image: UInt8[Tensor, "channels height width"]
    label: int
    mask: UInt8[Tensor, "height width"] | None = None


@runtime_checkable
class ImageDataset(Protocol):
    """Numbered samples: `dataset[i]` is the same sample in every process and at every time."""

    @property
    def name(self) -> str:
        """What to call it in logs and reports."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label, in label order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def fingerprint(self) -> str:
        """sha256 of what the data is; a resumed run must find the same."""
        ...


class Subset:
    """Some samples of another dataset, in the given order."""

    def __init__(
        self, dataset: ImageDataset, indices: Sequence[int] | Int[np.ndarray, "samples"], *, name: str
    ) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(self.indices) and not 0 <= self.indices.min() <= self.indices.max() < len(dataset):
            raise DataError(
                f"indices={self.indices.min()}…{self.indices.max()} leave the {len(dataset)} samples of "
                f"{dataset.name}; use 0 to {len(dataset) - 1}."
            )
        self.name = name

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of the whole."""
        return self.dataset.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[int(self.indices[index])]

    def fingerprint(self) -> str:
        """sha256 of the whole's fingerprint and the chosen indices."""
        digest = hashlib.sha256(self.dataset.fingerprint().encode())
        digest.update(self.indices.astype("<i8").tobytes())
        return digest.hexdigest()


def stratified_split(
    labels: Int[np.ndarray, "samples"], *, fraction: float, seed: int
) -> tuple[Int64[np.ndarray, "rest"], Int64[np.ndarray, "part"]]:
    """Two increasing lists of indices, (rest, part): `part` takes `fraction` of every class, rounded.

    A class of two samples or more has at least one in both; a class of one stays in `rest`. The same labels
    and seed give the same split, however it is used later.
    """
    if not 0 < fraction < 1:
        raise DataError(f"fraction={fraction} is not a share of the data; choose one between 0 and 1.")
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            continue
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        order = permutation(len(members), key(seed, "split", int(label)))
        chosen[members[order[:count]]] = True
    return np.flatnonzero(~chosen).astype(np.int64), np.flatnonzero(chosen).astype(np.int64)


def limit_of(split: str, limit: int | None, val_limit: int | None) -> int | None:
    """How many images of a split are kept at most: `limit`, or `val_limit` of "val" where it is given."""
    for name, count in (("limit", limit), ("val_limit", val_limit)):
        if count is not None and (type(count) is not int or count < 1):
            raise DataError(f"{name}={one_line(repr(count))} is not a count; use 1 or more.")
    return val_limit if split == "val" and val_limit is not None else limit
