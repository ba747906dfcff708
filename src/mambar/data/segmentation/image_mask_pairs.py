"""A dataset of image files with mask files, for every layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch
from jaxtyping import UInt8

from mambar.data.dataset import Sample, sha256_of
from mambar.data.loading.file_tree import FileTree
from mambar.data.loading.images import read_image
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.data.names import PackedNames
from mambar.data.segmentation.masks import LabelTable, read_mask
from mambar.errors import DataError, ImageError
from mambar.image_file import MAX_PIXELS
from mambar.image_paths import warn_left_out
from mambar.messages import one_line

# Suffixes of a mask's name after the image's name.
MASK_SUFFIXES = ("", "_mask", "_seg", "_label", "_labels", "_gt")

# (tree, path, table, max_pixels) → the label of every pixel.
MaskReader = Callable[[FileTree, str, LabelTable, int], UInt8[np.ndarray, "height width"]]


def read_mask_labels(
    tree: FileTree, path: str, table: LabelTable, max_pixels: int
) -> UInt8[np.ndarray, "height width"]:
    """The labels of a PNG of numbers or colors."""
    name = f"{tree.name}/{path}"
    stored = read_mask(tree.read(path), name=name, colors=bool(table.colors), max_pixels=max_pixels)
    return table.labels(stored, name=name)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The image and mask paths of one split in `tree`; "" where a mask is missing."""

    tree: FileTree
    images: Sequence[str]
    masks: Sequence[str]
    table: LabelTable
    read: MaskReader = read_mask_labels


def paired_listing(
    tree: FileTree,
    image_folder: str,
    images: Sequence[str],
    mask_folder: str,
    table: LabelTable,
    *,
    given: Mapping[str, str] | None = None,
    report: bool = True,
) -> Listing:
    """The images of a folder with their masks of another, by name or as `given`; paths are relative to the folders.

    report: log a warning about masks that are not PNG.
    """
    files = tree.files(mask_folder)
    others = [file for file in files if not file.lower().endswith(".png")]
    warn_left_out(others, "masks that are not PNG", place=f"{tree.name}/{mask_folder}" if report else None)
    by_name = _match_masks(images, files)
    masks = [(given or {}).get(image) or mask for image, mask in zip(images, by_name, strict=True)]
    return Listing(
        tree=tree,
        images=[f"{image_folder}/{path}" for path in images],
        masks=[f"{mask_folder}/{path}" if path else "" for path in masks],
        table=table,
    )


class ImageMaskPairs(SkippingDataset):
    """A segmentation dataset of image and mask files.

    `unreadable` counts and names pairs that cannot be read, have no mask, differ in size, or hold an unknown value.
    Training replaces such a pair, evaluation leaves it out; more than 10 and more than 1 % raise a DataError.
    """

    def __init__(self, listing: Listing, split: str, *, name: str, max_pixels: int = MAX_PIXELS) -> None:
        if not any(listing.masks):
            raise DataError(
                f"data={listing.tree.name} has {len(listing.images)} images for {split}, but no masks of them."
            )
        if len(listing.table.classes) == 1:
            raise DataError(
                f"data={listing.tree.name} has one class, {one_line(listing.table.classes[0])!r}; a segmenter needs "
                "two or more: name the background as well."
            )
        self.tree, self.table, self.read_mask_labels = listing.tree, listing.table, listing.read
        self.images, self.masks = PackedNames.from_names(listing.images), PackedNames.from_names(listing.masks)
        self.name, self.max_pixels = name, max_pixels
        self.classes, self.palette = self.table.classes, self.table.palette
        super().__init__(np.zeros(len(self.images), dtype=np.int64), split, source=self.tree.name)

    def fingerprint(self) -> str:
        """sha256 of the classes, label table, image paths and mask paths; file contents are not read."""
        table = (self.table.classes, sorted(self.table.values.items()), sorted(self.table.colors.items()))
        names = (self.images.text, self.images.offsets, self.masks.text, self.masks.offsets)
        return sha256_of(repr(table), *names)

    def _read(self, index: int) -> Sample:
        path, mask_path = self.images[index], self.masks[index]
        name = f"{self.tree.name}/{path}"
        if not mask_path:
            raise ImageError(f"{one_line(name)} has no mask; add one, or remove the image.")
        data = self.tree.read(path)
        labels = self.read_mask_labels(self.tree, mask_path, self.table, self.max_pixels)
        image = read_image(data, name=name, max_pixels=self.max_pixels)
        if tuple(image.shape[1:]) != labels.shape and tuple(image.shape[1:]) == labels.shape[::-1]:
            # The mask was drawn without applying the EXIF orientation.
            image = read_image(data, name=name, apply_exif_orientation=False, max_pixels=self.max_pixels)
        if tuple(image.shape[1:]) != labels.shape:
            raise ImageError(
                f"{one_line(name)} has {image.shape[2]}x{image.shape[1]} pixels, its mask {one_line(mask_path)} "
                f"{labels.shape[1]}x{labels.shape[0]}; make them the same size (masks without smoothing)."
            )
        return Sample(image, 0, torch.from_numpy(labels))


def _match_masks(images: Sequence[str], masks: Sequence[str]) -> list[str]:
    """The mask of each image: same name, optionally with one of `MASK_SUFFIXES`; "" where there is none."""
    known = {str(PurePosixPath(mask).with_suffix("")): mask for mask in masks if mask.lower().endswith(".png")}
    found = []
    for image in images:
        stem = str(PurePosixPath(image).with_suffix(""))
        found.append(next((known[stem + end] for end in MASK_SUFFIXES if stem + end in known), ""))
    return found
