"""Test images with ImageNet's classes: ImageNet-A, -R, -Sketch, ImageNetV2, and ReaL labels of the validation images.

Three layouts are recognized:

* A, R, Sketch: folders named by WordNet ids, a part of the 1000 classes.
* V2: folders named by class numbers from 0 to 999.
* ReaL (arXiv 2006.07159), with `real_labels`: the validation images, in one folder or in class folders; each may have
  several labels.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mambar.data.classification.wordnet import wordnet_names
from mambar.data.dataset import Sample, check_split, sha256_of
from mambar.data.loading.images import read_image
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.data.names import PackedNames
from mambar.errors import DataError
from mambar.image_file import MAX_PIXELS
from mambar.image_paths import files_below, is_image_name
from mambar.messages import one_line

_NUMBER = re.compile(r"(\d{8})\.\w+$")


def imagenet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k's classes, in the order of their labels."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


class ImageNetVariant(SkippingDataset):
    """Images of a test set; the target `valid_labels` has every correct label (0 to 999), `label` is the first of them.

    Args:
        root: Folder of the images.
        real_labels: ReaL's `real.json`: for each validation image, in the order of the numbers in the files' names, a
            list of labels from 0 to 999. Images with an empty list are left out.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        split: str = "val",
        real_labels: Path | str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_split(split, "a test set of ImageNet")
        self.root, self.name = Path(root).expanduser(), Path(root).name or str(root)
        self.max_pixels = max_pixels
        files = [file for file in files_below(self.root) if is_image_name(file)]
        found = _by_folder(self.root, files) if real_labels is None else _by_number(self.root, files, Path(real_labels))
        found = {file: labels for file, labels in found.items() if labels}
        if not found:
            raise DataError(f"root={root} has no labeled image; use the layout of ImageNet-A, -R, V2 or ReaL.")
        first = np.array([labels[0] for labels in found.values()], dtype=np.int64)
        super().__init__(first, "val", source=str(self.root))
        self.classes = wordnet_names(imagenet_ids())
        self._paths, self._valid = PackedNames.from_names(found), list(found.values())
        # Which of the 1000 classes occur.
        self.occurring = torch.zeros(len(self.classes), dtype=torch.bool)
        self.occurring[[label for labels in self._valid for label in labels]] = True

    def fingerprint(self) -> str:
        """sha256 of the paths and labels; file contents are not read."""
        return sha256_of(repr(self._valid), self._paths.text)

    def _read(self, index: int) -> Sample:
        # As in torchvision and the official evaluations, EXIF orientation is not applied.
        path = self.root / self._paths[index]
        image = read_image(path, apply_exif_orientation=False, max_pixels=self.max_pixels)
        valid = torch.tensor(self._valid[index])
        return Sample(image, int(valid[0]), targets={"valid_labels": valid})


def _by_folder(root: Path, files: list[str]) -> dict[str, tuple[int, ...]]:
    """Path → the label of its class folder."""
    known = {own: label for label, own in enumerate(imagenet_ids())} | {str(label): label for label in range(1000)}
    found = {}
    for file in files:
        folder = file.split("/")[0]
        if folder not in known:
            raise DataError(
                f"{one_line(file)} in {root} is in no class folder of ImageNet; name the folders by WordNet ids "
                "(n01440764) or by numbers from 0 to 999. For ReaL give real_labels=real.json."
            )
        found[file] = (known[folder],)
    return found


def _by_number(root: Path, files: list[str], real_labels: Path) -> dict[str, tuple[int, ...]]:
    """Path → the labels that ReaL's file has for the number in its name."""
    try:
        rows = [tuple(map(int, labels)) for labels in json.loads(real_labels.expanduser().read_text("utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"real_labels={real_labels} is no list of lists of labels: {one_line(error)}.") from error
    if any(not 0 <= label < 1000 for labels in rows for label in labels):
        raise DataError(f"real_labels={real_labels} has labels that are not from 0 to 999; give ReaL's real.json.")
    found = {}
    for file in files:
        match = _NUMBER.search(file)
        if match is None or not 1 <= int(match[1]) <= len(rows):
            raise DataError(
                f"{one_line(file)} in {root} has no number from 1 to {len(rows)}, as in ILSVRC2012_val_00000001.JPEG."
            )
        found[file] = rows[int(match[1]) - 1]
    return found


def class_columns(classes: tuple[str, ...] | None, num_classes: int) -> Int64[Tensor, "1000"]:
    """The place of each of ImageNet's 1000 classes among a model's classes, -1 where it does not have the class.

    `classes` are the model's class names, readable or WordNet ids; without them it must have the 1000 classes in order.
    """
    ids = imagenet_ids()
    if classes is None and num_classes != len(ids):
        raise DataError(f"the model has {num_classes} classes without names; use a model with ImageNet's 1000 classes.")
    place = {name: index for index, name in enumerate(ids if classes is None else classes)}
    found = [place.get(own, place.get(name, -1)) for own, name in zip(ids, wordnet_names(ids), strict=True)]
    if max(found) < 0:
        raise DataError("none of the model's classes is one of ImageNet's; use a model that was trained on them.")
    return torch.tensor(found)
