"""Images in one sub-folder per class, in `train/` and `val/`, or in one folder that is split on opening."""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from mambar.data.classification.wordnet import are_wordnet_ids, wordnet_names
from mambar.data.dataset import SPLITS, Sample, check_split, stratified_split
from mambar.data.loading.file_tree import files_below, folders_in
from mambar.data.loading.images import read_image
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.data.names import PackedNames
from mambar.errors import DataError
from mambar.image_file import IMAGE_SUFFIXES, MAX_PIXELS
from mambar.messages import one_line

logger = logging.getLogger("mambar.data")

# Names of split folders, most preferred first; compared in lower case.
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test", "testing")}
_OTHER_IMAGES = frozenset({".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".svg"})


class ImageFolder(SkippingDataset):
    """Images in class sub-folders; labels follow the sorted folder names.

    `root/train` and `root/val` are the splits. Without `val`, `val_fraction` of every class in `train`, or in the
    folder itself, is held out; `split_seed` determines which images.

    If all folders are named by WordNet ids, as in ImageNet, `classes` are readable names and EXIF orientation is not
    applied by default, as in torchvision and the official evaluation.

    `unreadable` counts and names unreadable images. The training split returns the next readable image of the class;
    the validation split raises ImageError, and evaluation leaves the image out. More than 10 and more than 1 %
    unreadable images raise a DataError.
    """

    def __init__(
        self,
        root: Path | str,
        split: str,
        *,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        apply_exif_orientation: bool | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.root = Path(root)
        self.max_pixels = max_pixels
        listing = _list_split(self.root, split, val_fraction, split_seed)
        self.folder, self.folder_names, self.paths, labels = listing
        super().__init__(labels, split, source=str(self.folder))
        wordnet = are_wordnet_ids(self.folder_names)
        self.apply_exif_orientation = not wordnet if apply_exif_orientation is None else apply_exif_orientation
        self.classes = wordnet_names(self.folder_names) if wordnet else self.folder_names
        self.name = self.root.name or str(self.root)

    def path(self, index: int) -> Path:
        return self.folder / self.paths[index]

    def fingerprint(self) -> str:
        """sha256 of the folder names and of every image's relative path and label; equal for tar shards of them."""
        return listing_fingerprint(self.folder_names, self.paths, self.labels)

    def _read(self, index: int) -> Sample:
        path = self.path(index)
        image = read_image(path, apply_exif_orientation=self.apply_exif_orientation, max_pixels=self.max_pixels)
        return Sample(image, int(self.labels[index]))


def listing_fingerprint(classes: tuple[str, ...], paths: PackedNames, labels: Int64[np.ndarray, "samples"]) -> str:
    """sha256 of a labeled list of files; file contents are not read."""
    digest = hashlib.sha256()
    for name in classes:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    digest.update(paths.text.tobytes())
    digest.update(paths.offsets.astype("<i8").tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def class_folders(folder: Path) -> list[str]:
    """The sorted names of the class sub-folders; DataError if there are none."""
    try:
        files = os.listdir(folder)  # noqa: PTH208
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else str(error.strerror).lower()
        raise DataError(f"data={folder} {reason}; give a folder with one sub-folder of images per class.") from error
    names = folders_in(folder)
    if not names:
        images = any(Path(file).suffix.lower() in IMAGE_SUFFIXES for file in files)
        found = "images but no class sub-folders" if images else "no class sub-folders"
        raise DataError(f"data={folder} has {found}; put the images of each class into its own sub-folder.")
    return names


def _list_split(
    root: Path, split: str, val_fraction: float, split_seed: int
) -> tuple[Path, tuple[str, ...], PackedNames, Int64[np.ndarray, "samples"]]:
    check_split(split, "a folder")
    if not root.exists():
        raise DataError(f"data={root} does not exist; give a folder with one sub-folder of images per class.")
    splits = split_folders(root)
    if splits and "train" not in splits:
        raise DataError(
            f"data={root} has {splits['val'].name}/ but no train/; add train/ with the same class sub-folders."
        )
    folder = splits.get(split) or splits.get("train") or root
    classes = class_folders(folder)
    if "val" in splits:
        _check_same_classes(root, splits["train"], splits["val"])
    elif not splits and len(classes) == 1:
        raise DataError(
            f"data={root} has one class, {one_line(classes[0])!r}; a classifier needs two or more. Give the folder "
            "that holds the class sub-folders."
        )
    paths, labels = _list_images(folder, classes)
    if "val" not in splits:
        if splits:
            logger.info("%s has no val/; %.0f %% of every class are held out.", root, 100 * val_fraction)
        part = _own_split(folder, classes, labels, val_fraction, split_seed)[SPLITS.index(split)]
        paths, labels = [paths[index] for index in part], labels[part]
    return folder, tuple(classes), PackedNames.from_names(paths), labels


def _own_split(
    folder: Path, classes: list[str], labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        lonely = classes[int(counts.argmin())]
        raise DataError(
            f"class {one_line(lonely)!r} in {folder} has 1 image, too few to split; add some, or give train/ and val/."
        )
    return stratified_split(labels, fraction=fraction, seed=seed)


def split_folders(root: Path) -> dict[str, Path]:
    """Split → its folder, by the names in `SPLIT_FOLDERS` in any case, also inside a single sub-folder; {} if none.

    A folder named like a split is a class if it has no sub-folders and there are other class folders beside it.
    """
    names = folders_in(root)
    lower = {name.lower(): name for name in reversed(names)}
    found = {
        split: root / lower[name]
        for split, known in SPLIT_FOLDERS.items()
        for name in reversed(known)
        if name in lower and (folders_in(root / lower[name]) or len(names) <= len(SPLITS))
    }
    if not found and len(names) == 1:
        found = split_folders(root / names[0])
        if found:
            logger.info("%s: the splits in its sub-folder %s are used.", root, one_line(names[0]))
    unused = [name for name in names if found and root / name not in found.values()]
    if unused and found and next(iter(found.values())).parent == root:
        logger.warning("%s: %s are not used; the splits are %s.", root, one_line(", ".join(unused)), ", ".join(found))
    return found


def _check_same_classes(root: Path, train_folder: Path, val_folder: Path) -> None:
    train, val = class_folders(train_folder), class_folders(val_folder)
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        where, name = (train_folder.name, only_train[0]) if only_train else (val_folder.name, only_val[0])
        raise DataError(
            f"data={root}: class {one_line(name)!r} is only in {where}/ ({len(train)} classes in {train_folder.name}/, "
            f"{len(val)} in {val_folder.name}/); both need the same sub-folders."
        )


def _list_images(folder: Path, classes: list[str]) -> tuple[list[str], np.ndarray]:
    paths: list[str] = []
    labels: list[int] = []
    others: list[str] = []
    for label, name in enumerate(classes):
        found = _images_below(folder, name, others)
        if not found:
            raise DataError(
                f"class {one_line(name)!r} in {folder} has no images (PNG, JPEG, WEBP); add some or remove the folder."
            )
        paths += found
        labels += [label] * len(found)
    if others:
        logger.warning(
            "%d files in %s are of a kind that is not read, such as %r; convert them to PNG, JPEG or WEBP.",
            len(others),
            folder,
            one_line(others[0]),
        )
    return paths, np.array(labels, dtype=np.int64)


def _images_below(folder: Path, name: str, others: list[str]) -> list[str]:
    """Relative paths, with forward slashes, of the images in a class folder and its sub-folders, sorted."""
    found: list[str] = []
    for file in files_below(folder / name):
        suffix = os.path.splitext(file)[1].lower()  # noqa: PTH122
        if suffix in IMAGE_SUFFIXES:
            found.append(f"{name}/{file}")
        elif suffix in _OTHER_IMAGES:
            others.append(f"{name}/{file}")
    return sorted(found)
