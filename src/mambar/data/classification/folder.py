"""Images in one sub-folder per class, in `train/` and `val/`, or in one folder that is split on opening."""

import logging
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from mambar.data.classification.wordnet import are_wordnet_ids, wordnet_names
from mambar.data.dataset import (
    SPLITS,
    Sample,
    check_split,
    is_split_name,
    named_splits,
    sha256_of,
    stratified_split,
)
from mambar.data.loading.images import read_image
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.data.names import PackedNames
from mambar.errors import DataError
from mambar.image_file import MAX_PIXELS
from mambar.image_paths import files_below, folders_in, is_image_name, select_images, warn_left_out
from mambar.messages import one_line

logger = logging.getLogger("mambar.data")

# More folders are classes, not datasets; listing those of ImageNet takes seconds.
_MANY_FOLDERS = 50


class ImageFolder(SkippingDataset):
    """Images in class sub-folders; labels follow the sorted folder names.

    `root/train`, `root/val` and, beside `val`, `root/test` are the splits. Without `val`, `val_fraction` of every class
    in `train`, or in the folder itself, is held out; `split_seed` determines which images. With `val_fraction=1` all
    images are in `val`.

    With `require_classes=False`, for training without labels, fewer than two class sub-folders are allowed: all images
    in the split, also in sub-folders, are then of one class, "images".

    If all folder names are WordNet ids, as in ImageNet, `classes` are readable names and EXIF orientation is not
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
        require_classes: bool = True,
        apply_exif_orientation: bool | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.root = Path(root)
        self.max_pixels = max_pixels
        listing = _list_split(self.root, split, val_fraction, split_seed, require_classes=require_classes)
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
    return sha256_of(*(f"{name}\0" for name in classes), paths.text, paths.offsets, labels)


def class_folders(folder: Path) -> list[str]:
    """The sorted names of the class sub-folders; DataError if there are none."""
    try:
        files = os.listdir(folder)  # noqa: PTH208
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else str(error.strerror).lower()
        raise DataError(f"data={folder} {reason}; give a folder with one sub-folder of images per class.") from error
    names = folders_in(folder)
    if not names:
        found = "images but no class sub-folders" if any(map(is_image_name, files)) else "no class sub-folders"
        raise DataError(f"data={folder} has {found}; put the images of each class into its own sub-folder.")
    return names


def _list_split(
    root: Path, split: str, val_fraction: float, split_seed: int, *, require_classes: bool
) -> tuple[Path, tuple[str, ...], PackedNames, Int64[np.ndarray, "samples"]]:
    if not root.exists():
        raise DataError(f"data={root} does not exist; give a folder with one sub-folder of images per class.")
    splits = split_folders(root)
    if split not in splits:
        check_split(split, "a folder")
    if split == "train" and splits and "train" not in splits:
        raise DataError(
            f"data={root} has {splits['val'].name}/ but no train/; add train/ with the same class sub-folders."
        )
    folder = splits.get(split) or splits.get("train") or root
    is_labeled = require_classes or len(folders_in(splits.get("train") or folder)) > 1
    classes = class_folders(folder) if is_labeled else ["images"]
    for name in {"val", split} - {"train"}:
        if is_labeled and name in splits and "train" in splits:
            _check_same_classes(root, splits["train"], splits[name])
    if is_labeled and len(classes) == 1:
        inside = folders_in(folder / classes[0])
        hint = (
            f"did you mean data={folder / classes[0]}?" if len(inside) > 1 else "The folder may be one level too deep."
        )
        raise DataError(
            f"data={folder} has one class, {one_line(classes[0])!r}; a classifier needs two or more. {hint} Give the "
            "folder that holds the class sub-folders."
        )
    # Where training reads both splits from one folder, only one of them reports what is left out.
    report = split == "train" or "val" in splits or val_fraction == 1
    place = folder if report else None
    paths, labels = _list_images(folder, classes, place=place) if is_labeled else _list_all_images(folder, place=place)
    if "val" not in splits and not (split == "val" and val_fraction == 1):
        if splits:
            logger.info("%s has no val/; %.0f %% of every class are held out.", root, 100 * val_fraction)
        counts = np.bincount(labels, minlength=len(classes))
        if counts.min() < 2:
            raise DataError(
                f"class {one_line(classes[int(counts.argmin())])!r} in {folder} has 1 image, too few to split; add "
                "some, or give train/ and val/."
            )
        part = stratified_split(labels, fraction=val_fraction, seed=split_seed)[SPLITS.index(split)]
        paths, labels = [paths[index] for index in part], labels[part]
    return folder, tuple(classes), PackedNames.from_names(paths), labels


def split_folders(root: Path) -> dict[str, Path]:
    """Split → its folder, by the names in `SPLIT_NAMES` in any case, also inside a single sub-folder; {} if none.

    A folder named like a split is a class if it has no sub-folders and there are other class folders beside it.
    DataError where it is not clear which folders are splits and which are classes.
    """
    names = folders_in(root)
    with_folders = [name for name in names if is_split_name(name) and folders_in(root / name)]
    if not with_folders and not all(map(is_split_name, names)):
        return _deeper_split_folders(root, names)
    # Without another validation split, the test images are used for it.
    chosen = named_splits(with_folders or names)
    found = {split: root / name for split, name in chosen.items()}
    unused = [name for name in names if name not in chosen.values()]
    images = [name for name in unused if not is_split_name(name) and _holds_images(root / name)]
    if images and "val" not in found:
        name = chosen["train"]
        raise DataError(
            f"data={root}: {name}/ has sub-folders, and {one_line(images[0])}/ beside it has images. If {name}/ is the "
            f"training split, give data={root / name}; if it is a class, rename it or remove its sub-folders."
        )
    if unused:
        logger.warning("%s: %s are not used; the splits are %s.", root, one_line(", ".join(unused)), ", ".join(found))
    return found


def folder_splits(root: Path) -> dict[str, str]:
    """Split → the name of its folder. A test folder with other classes than the training folder is left out."""
    splits = split_folders(root)
    if "test" in splits and "train" in splits and folders_in(splits["test"]) != folders_in(splits["train"]):
        logger.warning(
            "%s is not used: its class folders differ from those of %s/.", splits["test"], splits["train"].name
        )
        del splits["test"]
    return {split: folder.name for split, folder in splits.items()}


def _deeper_split_folders(root: Path, names: list[str]) -> dict[str, Path]:
    """The splits in the only sub-folder that holds nothing but splits, where the others have no images."""
    if len(names) > _MANY_FOLDERS:
        return {}
    inside = {name: folders_in(root / name) for name in names}
    deeper = [name for name in names if inside[name] and all(map(is_split_name, inside[name]))]
    if len(deeper) > 1 and len(deeper) == len(names):
        raise DataError(
            f"data={root}: each of {one_line(', '.join(deeper))} has {inside[deeper[0]][0]}/ inside. Give one of them, "
            f"or put the classes into the splits: {inside[deeper[0]][0]}/{one_line(deeper[0])}."
        )
    if len(names) == 1 or (len(deeper) == 1 and not any(_holds_images(root / each) for each in {*names} - {*deeper})):
        found = split_folders(root / (deeper or names)[0])
        if found:
            logger.info("%s: the splits in its sub-folder %s are used.", root, one_line((deeper or names)[0]))
        return found
    return {}


def _holds_images(folder: Path) -> bool:
    return any(map(is_image_name, files_below(folder)))


def _check_same_classes(root: Path, train_folder: Path, val_folder: Path) -> None:
    train, val = class_folders(train_folder), class_folders(val_folder)
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        where, name = (train_folder.name, only_train[0]) if only_train else (val_folder.name, only_val[0])
        raise DataError(
            f"data={root}: class {one_line(name)!r} is only in {where}/ ({len(train)} classes in {train_folder.name}/, "
            f"{len(val)} in {val_folder.name}/); both need the same sub-folders."
        )


def _list_all_images(folder: Path, *, place: Path | None) -> tuple[list[str], np.ndarray]:
    """All images below `folder`, sorted, with label 0."""
    paths = select_images(files_below(folder), place=place)
    if not paths:
        raise DataError(f"data={folder} has no images (PNG, JPEG, WEBP); give a folder that has some.")
    return paths, np.zeros(len(paths), dtype=np.int64)


def _list_images(folder: Path, classes: list[str], *, place: Path | None) -> tuple[list[str], np.ndarray]:
    """The images of each class, sorted, as paths relative to `folder` with forward slashes; and their labels."""
    inside: dict[str, list[str]] = {name: [] for name in classes}
    loose = []
    for file in files_below(folder):
        top, slash, _ = file.partition("/")
        if slash:
            inside[top].append(file)
        elif is_image_name(file):
            loose.append(file)
    select_images([file for files in inside.values() for file in files], place=place)
    warn_left_out(loose, "images that are in no class sub-folder", place=place)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [file for file in inside[name] if is_image_name(file)]
        if not found:
            raise DataError(
                f"class {one_line(name)!r} in {folder} has no images (PNG, JPEG, WEBP); add some or remove the folder."
            )
        paths += found
        labels += [label] * len(found)
    return paths, np.array(labels, dtype=np.int64)
