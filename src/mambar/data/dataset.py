"""The dataset protocol, its samples, subsets and stratified splits."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from mambar.data.keys import key, permutation
from mambar.errors import DataError
from mambar.messages import one_line

SPLITS: Final = ("train", "val")
# Names of a split's folder, list or part, most preferred first; case is ignored.
SPLIT_NAMES: Final = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test", "testing"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Sample:
    """One item of a dataset.

    Attributes:
        image: Pixels as stored, before any transform.
        label: Class index; 0 where a dataset has no image labels.
        mask: Label of every pixel. Segmentation: an index into `classes` or `IGNORE`. Classification: 0 is the
            background, k + 1 is class k.
        targets: Further targets by name, such as boxes; tensors or lists of any length.
    """

    image: UInt8[Tensor, "channels height width"]
    label: int
    mask: UInt8[Tensor, "height width"] | None = None
    targets: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class ImageDataset(Protocol):
    """A map-style dataset: `dataset[i]` is the same `Sample` in every process and in every run."""

    @property
    def name(self) -> str:
        """Name in logs and reports."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label, in label order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def fingerprint(self) -> str:
        """sha256 that identifies the data; a resumed run checks that it is unchanged."""
        ...


def check_split(split: str, data: str) -> None:
    """Raises DataError unless `split` is one of `SPLITS`; `data` names the data."""
    if split not in SPLITS:
        raise DataError(f"split={one_line(repr(split))} is unknown; {data} has train and val.")


def sha256_of(*parts: str | np.ndarray) -> str:
    """sha256 of texts and arrays one after another; undecodable bytes of file names are kept."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode("utf-8", "surrogateescape"))
        else:
            digest.update(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def find_name(wanted: Iterable[str], names: Iterable[str]) -> str:
    """The first of the wanted names that is among `names`, ignoring case, as it is written there; "" if none is."""
    written = {name.lower(): name for name in sorted(names, reverse=True)}
    return next((written[each.lower()] for each in wanted if each.lower() in written), "")


def named_splits(names: Iterable[str]) -> dict[str, str]:
    """Split → its name among `names`, for those found. "test" needs another name for "val" beside it."""
    given = list(names)
    found = {split: find_name(known, given) for split, known in SPLIT_NAMES.items()}
    if found["test"] == found["val"]:
        del found["test"]
    return {split: name for split, name in found.items() if name}


def is_split_name(name: str) -> bool:
    """True if the name is one of a split."""
    return any(name.lower() in names for names in SPLIT_NAMES.values())


class Subset:
    """The samples of another dataset at `indices`, in that order."""

    def __init__(
        self, dataset: ImageDataset, indices: Sequence[int] | Int[np.ndarray, "samples"], *, name: str
    ) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(self.indices) and not 0 <= self.indices.min() <= self.indices.max() < len(dataset):
            raise DataError(
                f"indices={self.indices.min()}…{self.indices.max()} are out of range for the {len(dataset)} samples "
                f"of {dataset.name}; use 0 to {len(dataset) - 1}."
            )
        self.name, self.classes = name, dataset.classes
        # Empty where the dataset has none.
        self.palette: tuple[tuple[int, int, int], ...] = getattr(dataset, "palette", ())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[int(self.indices[index])]

    def fingerprint(self) -> str:
        """sha256 of the dataset's fingerprint and the indices."""
        return sha256_of(self.dataset.fingerprint(), self.indices)


def stratified_split(
    labels: Int[np.ndarray, "samples"], *, fraction: float, seed: int
) -> tuple[Int64[np.ndarray, "rest"], Int64[np.ndarray, "part"]]:
    """Splits indices into two sorted arrays, (rest, part): `part` has `fraction` of every class, rounded.

    Classes with at least two samples have one or more in both arrays; a single sample goes to `rest`. Equal labels and
    seeds give equal splits.
    """
    if not 0 < fraction < 1:
        raise DataError(f"fraction={fraction} is not a fraction of the data; use a number between 0 and 1.")
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            continue
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        order = permutation(len(members), key(seed, "split", int(label)))
        chosen[members[order[:count]]] = True
    return np.flatnonzero(~chosen).astype(np.int64), np.flatnonzero(chosen).astype(np.int64)
