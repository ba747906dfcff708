"""Tiny-ImageNet as it is distributed: `tiny-imagenet-200` with one box around the object of every image.

`train/<wnid>/images/*.JPEG` beside `train/<wnid>/<wnid>_boxes.txt` (file and box on each line), and `val/images` beside
`val/val_annotations.txt` (file, class and box). The test split has no labels and is not read. Folders with a part of
the 200 classes are read in the same way.
"""

from pathlib import Path

from mambar.data.boxed_images import BoxedImages
from mambar.data.classification.wordnet import wordnet_names
from mambar.data.dataset import check_split
from mambar.data.loading.file_tree import FileTree, open_tree
from mambar.errors import DataError
from mambar.messages import one_line

FOLDER = "tiny-imagenet-200"
_VAL_FILE = "val/val_annotations.txt"


def is_tiny_imagenet(path: Path) -> bool:
    """True if the folder, or its sub-folder `tiny-imagenet-200`, has the annotations of Tiny-ImageNet."""
    return any((root / _VAL_FILE).is_file() for root in (path, path / FOLDER))


def tiny_imagenet(root: Path | str = "data", *, split: str) -> BoxedImages:
    """Tiny-ImageNet in the folder or .zip `root`, or in its sub-folder `tiny-imagenet-200`.

    `classes` are the readable names of the WordNet ids, the same for any part of the classes.
    """
    check_split(split, "Tiny-ImageNet")
    tree = open_tree(root)
    tree = tree.subtree(FOLDER) if FOLDER in tree.folders() else tree
    ids = tuple(tree.folders("train"))
    if not ids:
        raise DataError(f"root={root} has no class folders in train/; give the folder {FOLDER} as it is distributed.")
    if split == "val":
        rows = [(f"val/images/{file}", *rest) for file, *rest in _rows(tree, _VAL_FILE, 6)]
    else:
        rows = [
            (f"train/{wnid}/images/{file}", wnid, *box)
            for wnid in ids
            for file, *box in _rows(tree, f"train/{wnid}/{wnid}_boxes.txt", 5)
        ]
    labels = {wnid: label for label, wnid in enumerate(ids)}
    objects = {}
    for path, wnid, *numbers in rows:
        if wnid not in labels:
            raise DataError(
                f"{tree.name}/{path} is of class {one_line(wnid)!r}, which has no folder in train/; add it."
            )
        x0, y0, x1, y1 = map(float, numbers)
        # The files give the last pixel inside.
        objects[path] = [(labels[wnid], (x0, y0, x1 + 1, y1 + 1))]
    return BoxedImages(tree, split, name="tiny_imagenet", classes=wordnet_names(ids), objects=objects)


def _rows(tree: FileTree, path: str, columns: int) -> list[list[str]]:
    text = tree.text(path)
    if text is None:
        raise DataError(f"{tree.name} has no {path}; give the folder {FOLDER} as it is distributed.")
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    for row in rows:
        if len(row) != columns or "/" in row[0] or not all(number.strip().isdecimal() for number in row[-4:]):
            raise DataError(
                f"{tree.name}/{path} has the line {one_line(' '.join(row))!r}; use {columns} columns separated by "
                "tabs: the file's name first, x0, y0, x1 and y1 in pixels last."
            )
    return rows
