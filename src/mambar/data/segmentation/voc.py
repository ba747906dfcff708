"""PASCAL VOC's layout: JPEGImages, SegmentationClass, and lists of names in ImageSets/Segmentation.

Annotation tools export this layout with their own classes. A `labelmap.txt` (`name:r,g,b::` on each line),
`class_names.txt` or `classes.txt` replaces the twenty classes of VOC.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from mambar.data.loading.file_tree import FileTree
from mambar.data.segmentation.folder import CLASS_FILE, label_table, parse_class_lines
from mambar.data.segmentation.image_mask_pairs import Listing, paired_listing
from mambar.data.segmentation.masks import IGNORE, Color, LabelTable
from mambar.data.segmentation.split_list import find_split_list, read_split_list
from mambar.errors import DataError
from mambar.image_paths import select_images

VOC_CLASSES: Final = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_IMAGES, _MASKS, _LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"


def looks_like_voc(tree: FileTree) -> bool:
    """True if `tree` has VOC's folders, at the top or in VOCdevkit/VOC2012."""
    return find_voc_root(tree, _IMAGES, _MASKS) is not None


def find_voc(tree: FileTree, split: str) -> Listing:
    """The images and masks that ImageSets/Segmentation lists for the split."""
    root = find_voc_root(tree, _IMAGES, _MASKS)
    if root is None:
        raise DataError(f"data={tree.name} has no {_IMAGES} and {_MASKS}; give the folder VOC2012.")
    path = find_split_list(root, split, _LISTS)
    if not path:
        raise DataError(f"data={root.name} has no {_LISTS}/{split}.txt; add it with one image name per line.")
    images = select_images(root.files(_IMAGES), place=f"{root.name}/{_IMAGES}")
    listed = read_split_list(root, path, images, root.files(_MASKS))
    # A listed image that does not exist is reported like an unreadable one.
    given = {each.image or f"{each.line}.jpg": each.mask for each in listed}
    return paired_listing(root, _IMAGES, list(given), _MASKS, _table(root), given=given)


def voc_palette(count: int) -> tuple[Color, ...]:
    """VOC's colors: the bits of the class number distributed over red, green and blue, highest first."""
    label, band = np.arange(count)[:, None], np.arange(3)
    bits = np.array([(label >> (3 * place + band) & 1) << (7 - place) for place in range(8)])
    return tuple((red, green, blue) for red, green, blue in bits.sum(0).tolist())


def find_voc_root(tree: FileTree, *folders: str) -> FileTree | None:
    """The tree with these folders: `tree`, one of its folders, or VOCdevkit/VOC* inside it; None if there is none."""
    for place in ["", *tree.folders(), *(f"VOCdevkit/{name}" for name in tree.folders("VOCdevkit"))]:
        if set(folders) <= set(tree.folders(place)):
            return tree.subtree(place) if place else tree
    return None


def _table(root: FileTree) -> LabelTable:
    labelmap = root.text("labelmap.txt")
    if labelmap is not None:
        source = f"{root.name}/labelmap.txt"
        table = label_table(parse_class_lines(labelmap, source=source), source=source)
        if not table.colors:
            raise DataError(f"{source} has no line name:r,g,b::; write one for each class, or remove the file.")
        # VOC's border between objects.
        return replace(table, colors={(224, 224, 192): IGNORE, **table.colors})
    for file in ("class_names.txt", CLASS_FILE):
        text = root.text(file)
        if text is not None:
            return label_table(parse_class_lines(text.replace("_background_", "background"), source=file), source=file)
    values = {IGNORE: IGNORE, **{label: label for label in range(len(VOC_CLASSES))}}
    return LabelTable(classes=VOC_CLASSES, values=values, palette=voc_palette(len(VOC_CLASSES)))
