"""CIFAR-10: 60,000 photographs of 32×32 pixels, from torchvision's loader or from JPEG copies in .npz files.

The .npz layout (`train.npz`, `test.npz`): `jpeg`, all files one after another; `offsets`, n + 1 of them;
`labels`; `classes`. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mambar.data.dataset import Sample, check_split, sha256_of
from mambar.data.loading.images import read_image
from mambar.data.loading.pixel_cache import PixelCache
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.errors import DataError

FILES = {"train": "train.npz", "val": "test.npz"}
_SHAPE = (3, 32, 32)
_FIELDS = ("jpeg", "offsets", "labels", "classes")


class Cifar10:
    """CIFAR-10 as torchvision stores it; `val` is the official test set.

    `root` holds `cifar-10-batches-py`; with `download` torchvision fetches it there first (and checks its
    md5).
    """

    name = "cifar10"

    def __init__(self, root: Path | str = "data", *, split: str, download: bool = False) -> None:
        from torchvision.datasets import CIFAR10

        check_split(split, "CIFAR-10")
        try:
            stored = CIFAR10(str(root), train=split == "train", download=download)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"CIFAR-10 is not complete in root={root}: {reason} Use download=true or another root."
            ) from error
        self.split = split
        self.classes = tuple(stored.classes)
        self.labels = np.asarray(stored.targets, dtype=np.int64)
        self._pixels = torch.from_numpy(np.asarray(stored.data))  # (samples, 32, 32, 3)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._pixels[index].permute(2, 0, 1), int(self.labels[index]))

    def fingerprint(self) -> str:
        """sha256 of all pixels and labels."""
        return sha256_of(self._pixels.numpy(), self.labels)


class Cifar10Jpeg(SkippingDataset):
    """CIFAR-10 as JPEG copies in `train.npz` and `test.npz`.

    Decoded images are cached (`PixelCache`).
    """

    # The name appears in figures, because results on compressed copies differ.
    name = "cifar10 (JPEG copies)"

    def __init__(self, root: Path | str, split: str) -> None:
        check_split(split, "CIFAR-10")
        self.file = Path(root) / FILES[split]
        stored = _read_npz(self.file)
        self.jpeg = stored["jpeg"]
        self.offsets = stored["offsets"].astype(np.int64)
        super().__init__(stored["labels"].astype(np.int64), split, source=str(self.file))
        self.classes = tuple(str(name) for name in stored["classes"])
        self._check()
        self._decoded = PixelCache(len(self.labels), _SHAPE)

    def _read(self, index: int) -> Sample:
        pixels = self._decoded.get(index)
        if pixels is None:
            data = self.jpeg[self.offsets[index] : self.offsets[index + 1]].tobytes()
            pixels = read_image(data, name=f"image {index} of {self.file}")
            self._decoded.put(index, pixels)
        return Sample(pixels, int(self.labels[index]))

    def _check(self) -> None:
        offsets, labels = self.offsets, self.labels
        sound = len(offsets) == len(labels) + 1 and len(labels) > 0
        sound = sound and offsets[0] == 0 and offsets[-1] == len(self.jpeg) and bool((np.diff(offsets) > 0).all())
        if not sound or not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise DataError(f"{self.file} is inconsistent: offsets or labels are out of range; copy it again.")

    def fingerprint(self) -> str:
        """sha256 of all files and labels."""
        return sha256_of(self.jpeg, self.offsets, self.labels)


def has_npz(root: Path) -> bool:
    """True if the folder has CIFAR-10 in .npz files."""
    return all((root / file).is_file() for file in FILES.values())


def _read_npz(file: Path) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            missing = [name for name in _FIELDS if name not in stored.files]
            if missing:
                raise DataError(f"{file} lacks the array {missing[0]!r}; it needs {', '.join(_FIELDS)}.")
            return {name: stored[name] for name in _FIELDS}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file} cannot be read as .npz: {reason[:120]}.") from error
