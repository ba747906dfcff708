"""Image classification datasets of Hugging Face `datasets`, from the hub or from `save_to_disk`.

Only bytes are read from the library: `read_image` decodes them, with its limits. `datasets` (extra `data`) is imported
on use; since version 4 it runs no code of a dataset's author.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from mambar.data.dataset import Sample, named_splits, sha256_of, stratified_split
from mambar.data.loading.images import read_image
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.errors import DataError, ImageError
from mambar.hub_network import offline_if_unreachable
from mambar.image_file import MAX_PIXELS
from mambar.messages import needs_package, one_line

logger = logging.getLogger("mambar.data")

PREFIX: Final = "hf:"
_MARKS: Final = ("dataset_dict.json", "dataset_info.json")


class HuggingFaceDataset(SkippingDataset):
    """A split of a dataset on the hub (`hf:NAME`) or of a folder that `save_to_disk` wrote.

    "val" is the first of the splits val, valid, validation and test; "test" is one beside it. Without "val",
    `val_fraction` of every class of the training split is held out, chosen by `split_seed`. `image` and `label` name
    the columns (None: the only one of its type); the label must be a ClassLabel. `subset` and `revision` are passed to
    the hub. Unreadable images are handled as in `ImageFolder`.
    """

    def __init__(
        self,
        source: Path | str,
        split: str,
        *,
        image: str | None = None,
        label: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        datasets = _library()
        self.source, self.max_pixels = str(source), max_pixels
        self.name = self.source.removeprefix(PREFIX).rstrip("/").rpartition("/")[2]
        whole = _open(datasets, self.source, subset, revision)
        names = named_splits(whole)
        name = names.get(split) or (names.get("train") if split == "val" else None)
        if name is None:
            raise DataError(f"data={self.source} has no split called {split}; it has {one_line(', '.join(whole))}.")
        chosen = whole[name]
        self._image = _column(chosen, datasets.Image, image, f"data={self.source}: image")
        self._label = _column(chosen, datasets.ClassLabel, label, f"data={self.source}: label")
        self.classes = tuple(str(name) for name in chosen.features[self._label].names)
        labels = np.asarray(chosen[self._label], dtype=np.int64)
        self._rows = np.flatnonzero(labels >= 0)
        if len(self._rows) < len(labels):
            missing = len(labels) - len(self._rows)
            logger.warning(
                "data=%s: %d of %d images in %s have no label; left out.", source, missing, len(labels), split
            )
        if "val" not in names and not (split == "val" and val_fraction == 1):
            parts = stratified_split(labels[self._rows], fraction=val_fraction, seed=split_seed)
            self._rows = self._rows[parts[("train", "val").index(split)]]
        super().__init__(labels[self._rows], split, source=self.source)
        if not len(self.labels):
            raise DataError(f"data={self.source} has no labeled images in {split}; see its dataset card.")
        # Bytes instead of images: `read_image` decodes them.
        self._table: Any = chosen.cast_column(self._image, datasets.Image(decode=False))
        self._content = str(chosen._fingerprint)

    def _read(self, index: int) -> Sample:
        row = int(self._rows[index])
        stored = self._table[row][self._image]
        name = f"image {row} of {self.source}"
        if not stored or stored.get("bytes") is None:
            path = (stored or {}).get("path")
            if not path:
                raise ImageError(f"{name} is empty (0 bytes); replace or remove it.")
            pixels = read_image(Path(path), max_pixels=self.max_pixels)
        else:
            pixels = read_image(stored["bytes"], name=name, max_pixels=self.max_pixels)
        return Sample(pixels, int(self.labels[index]))

    def fingerprint(self) -> str:
        """sha256 of the table's own fingerprint, the classes, the chosen rows and their labels."""
        return sha256_of(repr((self._content, self.classes)), self._rows, self.labels)


def hf_splits(source: Path | str, options: Mapping[str, Any]) -> dict[str, str]:
    """Split → its name in the dataset. A test split without labels is left out, as that of many benchmarks."""
    datasets = _library()
    whole = _open(datasets, str(source), options.get("subset"), options.get("revision"))
    names = named_splits(whole)
    if "test" in names:
        table = whole[names["test"]]
        known = [each for each, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
        column = options.get("label") or (known[0] if len(known) == 1 else None)
        if column not in known or not any(label is not None and label >= 0 for label in table[column]):
            logger.warning("data=%s: the images of %s have no labels; they are not used.", source, names.pop("test"))
    return names


def saved_to_disk(path: Path) -> bool:
    """True if `save_to_disk` wrote the folder."""
    return any((path / mark).is_file() for mark in _MARKS)


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(needs_package("data=hf:NAME", "datasets", extra="data")) from None
    return datasets


def _open(datasets: Any, source: str, subset: str | None, revision: str | None) -> Any:
    try:
        if source.startswith(PREFIX):
            with offline_if_unreachable():
                return datasets.load_dataset(source.removeprefix(PREFIX), subset, revision=revision)
        found = datasets.load_from_disk(source)
    # The library's errors for missing, private and damaged datasets have no common base class.
    except Exception as error:
        reason = one_line(str(error), limit=160) or type(error).__name__
        raise DataError(f"data={source} cannot be opened: {reason.rstrip('.')}.") from error
    return found if isinstance(found, datasets.DatasetDict) else {"train": found}


def _column(table: Any, kind: type[Any], asked: str | None, what: str) -> str:
    """The requested column, or the only one of its type."""
    fitting = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    if asked is not None and asked not in fitting:
        raise DataError(
            f"{what}={one_line(asked)} is not a {kind.__name__} column; these are: {one_line(', '.join(fitting))}."
        )
    if asked is None and len(fitting) != 1:
        raise DataError(
            f"{what} column is not clear: {len(fitting)} columns are {kind.__name__} "
            f"({one_line(', '.join(fitting)) or 'none'}); name one with data_options.{what.rpartition(' ')[2]}=NAME."
        )
    return asked or fitting[0]
