"""ADE20K in its released layouts: SceneParse150 (150 classes), and the full archive with the same classes.

SceneParse150 (`ADEChallengeData2016`): images/{training,validation}, annotations/…, where value 0 is "other" (ignored)
and value k is class k - 1.

Full archive (`ADE20K_2021_17_01`, `ADE20K_2016_07_26`): images in folders by scene. Beside each image are a `_seg.png`
(red and green encode the object class, blue the instance) and a `.json` or `_atr.txt` with the names. The archive's
index is a pickle and is not read. Folders and the downloaded .zip are accepted.
"""

import json

import numpy as np
from jaxtyping import UInt8

from mambar.data.loading.file_tree import FileTree
from mambar.data.segmentation.ade20k_classes import CLASSES, FULL_NAMES, OTHER_NAMES
from mambar.data.segmentation.folder import CLASS_FILE, label_table, parse_class_lines
from mambar.data.segmentation.image_mask_pairs import Listing, paired_listing
from mambar.data.segmentation.masks import IGNORE, LabelTable, read_mask
from mambar.errors import DataError, ImageError
from mambar.image_paths import select_images
from mambar.messages import one_line

_SPLITS = {"train": "training", "val": "validation"}


def looks_like_scene_parse(tree: FileTree) -> bool:
    """True if `tree` has the folders of SceneParse150."""
    return "training" in tree.folders("images") and "training" in tree.folders("annotations")


def looks_like_full_ade20k(tree: FileTree) -> bool:
    """True if `tree` has the folders of the full archive."""
    return _full_root(tree) is not None


def find_scene_parse(tree: FileTree, split: str) -> Listing:
    """A split of SceneParse150, or of other data in its layout with a `classes.txt` that names values 1, 2, …"""
    folder = _SPLITS[split]
    images = select_images(tree.files(f"images/{folder}"), place=f"{tree.name}/images/{folder}")
    if not images:
        raise DataError(f"data={tree.name} has no images in images/{folder}; unpack all of ADEChallengeData2016.")
    own = tree.text(CLASS_FILE)
    if own is not None:
        source = f"{tree.name}/{CLASS_FILE}"
        table = label_table(parse_class_lines(own, source=source), source=source, zero_ignored=True)
    else:
        values = {0: IGNORE, **{label + 1: label for label in range(len(CLASSES))}}
        table = LabelTable(classes=CLASSES, values=values, hint=f"or name the classes in {CLASS_FILE}")
    return paired_listing(tree, f"images/{folder}", images, f"annotations/{folder}", table)


def find_full_ade20k(tree: FileTree, split: str) -> Listing:
    """A split of the full archive; objects outside the 150 classes are ignored."""
    root = _full_root(tree)
    if root is None:
        raise DataError(f"data={tree.name} is not the full ADE20K; it needs images/ADE/training or images/training.")
    folder = f"{root}/{_SPLITS[split]}"
    files = tree.files(folder)
    images = [f"{folder}/{path}" for path in files if path.endswith(".jpg")]
    if not images:
        raise DataError(f"data={tree.name} has no images in {folder}.")
    there = {path for path in files if path.endswith("_seg.png")}
    masks = [f"{image[:-4]}_seg.png" if image[len(folder) + 1 : -4] + "_seg.png" in there else "" for image in images]
    return Listing(tree=tree, images=images, masks=masks, table=LabelTable(classes=CLASSES), read=read_full_mask)


def read_full_mask(tree: FileTree, path: str, table: LabelTable, max_pixels: int) -> UInt8[np.ndarray, "height width"]:
    """Labels of a `_seg.png`: class number = red / 10 · 256 + green, named by the image's .json or _atr.txt."""
    stored = read_mask(tree.read(path), name=path, max_pixels=max_pixels)
    if stored.ndim != 3:
        raise ImageError(f"{one_line(path)} is not an ADE20K mask: it has no colors.")
    stem = path.removesuffix("_seg.png")
    text = tree.text(f"{stem}.json")
    if text is not None:
        numbers = stored[..., 0].astype(np.int64) // 10 * 256 + stored[..., 1]
        labels = {number: _label(name) for number, name in _named_numbers(text, f"{stem}.json").items()}
        return _map_labels(numbers, labels)
    text = tree.text(f"{stem}_atr.txt")
    if text is None:
        raise ImageError(f"{one_line(path)} has neither a .json nor an _atr.txt that names its objects.")
    instances = np.unique(stored[..., 2], return_inverse=True)[1].reshape(stored.shape[:2])
    return _map_labels(instances, _named_instances(text))


def _full_root(tree: FileTree) -> str | None:
    for root in ("images/ADE", "images"):
        if "training" in tree.folders(root) and tree.folders(f"{root}/training"):
            return root
    return None


def _named_numbers(text: str, name: str) -> dict[int, str]:
    try:
        objects = json.loads(text)["annotation"]["object"]
        objects = [objects] if isinstance(objects, dict) else objects
        return {int(each["name_ndx"]): str(each["name"]) for each in objects}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ImageError(f"{one_line(name)} is not an ADE20K annotation: {type(error).__name__}.") from error


def _named_instances(text: str) -> dict[int, int]:
    """Instance → label of an _atr.txt (number # part level # occluded # name # …) without parts of objects."""
    labels = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("#")]
        if len(parts) > 3 and parts[0].isdecimal() and parts[1] == "0":
            labels[int(parts[0])] = _label(parts[3])
    return labels


def _label(name: str) -> int:
    """The label of an object name of the full archive, a list of synonyms; `IGNORE` for other classes."""
    words = ", ".join(word.strip() for word in name.lower().split(","))
    return FULL_NAMES.get(words, OTHER_NAMES.get(words, IGNORE))


def _map_labels(numbers: np.ndarray, labels: dict[int, int]) -> UInt8[np.ndarray, "height width"]:
    table = np.full(int(numbers.max(initial=0)) + 1, IGNORE, dtype=np.uint8)
    for number, label in labels.items():
        if 0 <= number < len(table):
            table[number] = label
    return table[numbers]
