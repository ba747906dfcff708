"""Datasets to segment, by name or by path: the one place that knows them all."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from mambar.data.dataset import Sample, Subset, limit_of
from mambar.data.keys import key, permutation
from mambar.data.loading.file_tree import FileTree, open_tree, single_folder
from mambar.data.loading.images import MAX_PIXELS
from mambar.data.segmentation import ade20k, voc
from mambar.data.segmentation.folder import find_folder, looks_like_folder
from mambar.data.segmentation.masked_images import SPLITS, ImageMaskPairs, Listing, SegmentationDataset
from mambar.data.segmentation.masks import Color, palette
from mambar.data.synthetic.mosaics import Mosaics
from mambar.data.synthetic.shapes import Shapes
from mambar.errors import DataError
from mambar.messages import did_you_mean, one_line


class ShapeMasks:
    """The procedural scenes of `Shapes` with their masks as the thing to learn: background, then the outlines."""

    name = "shapes"

    def __init__(self, split: str, **options: Any) -> None:
        self.shapes = Shapes(split=split, **options)

    @property
    def classes(self) -> tuple[str, ...]:
        """background and the outlines' names."""
        return ("background", *self.shapes.classes)

    @property
    def palette(self) -> tuple[Color, ...]:
        """Gray for the background, a color an outline."""
        return ((90, 94, 102), *palette(len(self.shapes.classes)))

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Sample:
        sample = self.shapes[index]
        return Sample(sample.image, 0, sample.mask)

    def fingerprint(self) -> str:
        """That of the scenes."""
        return self.shapes.fingerprint()


class Part:
    """Some samples of a dataset to segment."""

    def __init__(self, dataset: SegmentationDataset, indices: list[int]) -> None:
        self.part = Subset(dataset, indices, name=dataset.name)
        self.name, self.classes, self.palette = dataset.name, dataset.classes, dataset.palette

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Sample:
        return self.part[index]

    def fingerprint(self) -> str:
        """sha256 of the whole's fingerprint and the chosen indices."""
        return self.part.fingerprint()


def _mosaics(split: str, **options: Any) -> Mosaics:
    return Mosaics(split=split, **options)


# Name → (how it is made, what has its options as fields).
BUILT_IN: Final[dict[str, tuple[Callable[..., SegmentationDataset], type]]] = {
    "shapes": (ShapeMasks, Shapes),
    "mosaics": (_mosaics, Mosaics),
}
# Layout → (whether a tree has it, what lists a split of it); tried in this order.
LAYOUTS: Final[dict[str, tuple[Callable[[FileTree], bool], Callable[..., Listing]]]] = {
    "SceneParse150": (ade20k.looks_like_scene_parse, ade20k.find_scene_parse),
    "full ADE20K": (ade20k.looks_like_full_ade20k, ade20k.find_full_ade20k),
    "VOC": (voc.looks_like_voc, voc.find_voc),
    "images and masks": (looks_like_folder, find_folder),
}


def open_segmentation(
    data: str | Path,
    split: str,
    *,
    limit: int | None = None,
    val_limit: int | None = None,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> SegmentationDataset:
    """The split ("train" or "val") of the dataset that `data` names: a built-in's name, or a path.

    Built in: shapes (options: the fields of `Shapes`) and mosaics (those of `Mosaics`). A path to a folder or a .zip is
    looked at: SceneParse150, the full ADE20K, VOC, or any folders of images and masks (options of `find_folder`:
    classes, val_fraction, split_seed). `limit` keeps that many images at most, always the same ones; `val_limit` acts
    on "val" in its place.
    """
    if split not in SPLITS:
        raise DataError(f"split={split!r} is unknown; use {' or '.join(SPLITS)}.")
    if isinstance(data, str) and data in BUILT_IN:
        maker, holder = BUILT_IN[data]
        _refuse_unknown(data, options, [each.name for each in fields(holder) if each.name != "split"])
        dataset = _made(data, maker, split, options)
    else:
        tree, finder = _layout(open_tree(data))
        accepted = [name for name in inspect.signature(finder).parameters if name not in ("tree", "split")]
        _refuse_unknown(str(data), options, accepted)
        listing = finder(tree, split, **options)
        dataset = ImageMaskPairs(listing, split, name=Path(data).name or str(data), max_pixels=max_pixels)
    limit = limit_of(split, limit, val_limit)
    if limit is None or limit >= len(dataset):
        return dataset
    order = permutation(len(dataset), key(0, "limit", split))
    return Part(dataset, sorted(order[:limit].tolist()))


def _layout(tree: FileTree) -> tuple[FileTree, Callable[..., Listing]]:
    """The tree in which a layout is found, and what lists a split of it."""
    inside: FileTree | None = tree
    while inside is not None:
        for looks, find in LAYOUTS.values():
            if looks(inside):
                return inside, find
        inside = single_folder(inside)
    # Says what is missing.
    return tree, find_folder


def _made(
    data: str, maker: Callable[..., SegmentationDataset], split: str, options: dict[str, Any]
) -> SegmentationDataset:
    try:
        return maker(split, **options)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise DataError(f"data={data} cannot be made with {given}: {error}.") from error


def _refuse_unknown(data: str, options: dict[str, Any], accepted: list[str]) -> None:
    for name in options:
        if name not in accepted:
            hint = did_you_mean(name, accepted, otherwise=f"it takes {', '.join(accepted) or 'none'}.")
            raise DataError(f"data={data} has no option {one_line(name)!r}; {hint}")
