"""Folders of images and masks with a file of class names.

Layouts: `images/train` + `masks/train`, `train/images` + `train/masks`, or `images` + `masks` with the lists
`train.txt` and `val.txt`; without lists a fraction is held out. Splits may have their other usual names. Masks are PNGs
with the names of the images. They hold numbers (line k of classes.txt names number k, 255 is ignored) or colors
(`name #rrggbb` on each line). Classes named ignore or void are ignored.
"""

import logging
import re
from dataclasses import replace

import numpy as np

from mambar.data.dataset import SPLIT_NAMES, SPLITS, find_name, is_split_name
from mambar.data.keys import key, permutation
from mambar.data.loading.file_tree import FileTree
from mambar.data.segmentation.image_mask_pairs import Listing, paired_listing
from mambar.data.segmentation.masks import IGNORE, Color, LabelTable, color_codes, read_mask
from mambar.data.segmentation.split_list import find_split_list, read_split_list
from mambar.errors import DataError, ImageError
from mambar.image_paths import select_images
from mambar.messages import one_line

logger = logging.getLogger("mambar.data")

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "SegmentationClass", "gt")
CLASS_FILE = "classes.txt"
IGNORED_NAMES = frozenset({"ignore", "void", "unlabeled", "unlabelled"})
# Masks that are read to list their values in an error message.
_SAMPLED_MASKS = 20
_COLORS = (
    re.compile(r"(?P<name>.*\S)[\s,;:]+#(?P<hex>[0-9a-fA-F]{6})"),
    re.compile(r"(?P<name>.*[^\s\d,;:])[\s,;:]+(?P<r>\d{1,3})[\s,]+(?P<g>\d{1,3})[\s,]+(?P<b>\d{1,3})"),
    re.compile(r"(?P<r>\d{1,3})[\s,]+(?P<g>\d{1,3})[\s,]+(?P<b>\d{1,3})[\s,;:]+(?P<name>\S.*)"),
    # A line of VOC's labelmap.txt: name:r,g,b:parts:actions.
    re.compile(r"(?P<name>[^:]+):(?P<r>\d{1,3}),(?P<g>\d{1,3}),(?P<b>\d{1,3}):[^:]*:[^:]*"),
)


def find_folder(
    tree: FileTree, split: str, *, classes: str | None = None, val_fraction: float = 0.2, split_seed: int = 0
) -> Listing:
    """The images and masks of a split; DataError for another layout.

    classes: the file of class names in the tree, or "found" to name classes after the values or colors in the masks;
        None for classes.txt, or "found" where there is no such file.
    val_fraction: fraction of the images that is held out where the data have no splits, chosen by `split_seed`.
    """
    image_folder, mask_folder, split_list = _folders(tree, split)
    own_folder = _has_splits(tree)
    # Where training reads both splits from one folder, only one of them reports what is left out.
    report = split == "train" or own_folder or val_fraction == 1
    images = select_images(tree.files(image_folder), place=f"{tree.name}/{image_folder}" if report else None)
    given: dict[str, str] = {}
    if split_list:
        listed = read_split_list(tree, split_list, images, tree.files(mask_folder))
        given = {each.image: each.mask for each in listed}
        images = [path for path in images if path in given]
    if not images:
        raise DataError(f"data={tree.name} has no images (PNG, JPEG, WEBP) for {split} in {image_folder}; add some.")
    if not own_folder and not split_list:
        images = _part(images, split, val_fraction, split_seed)
    every_mask = _every_mask(tree)
    if classes is None:
        classes = CLASS_FILE if tree.has_file(CLASS_FILE) else "found"
    table = _found_table(tree, every_mask) if classes == "found" else _named_table(tree, classes, every_mask)
    return paired_listing(tree, image_folder, images, mask_folder, table, given=given, report=report)


def looks_like_folder(tree: FileTree) -> bool:
    """True if `tree` has folders of images and of masks in a layout of `find_folder`."""
    top = tree.folders()
    inside = [*top, *(sub for folder in top if is_split_name(folder) for sub in tree.folders(folder))]
    return bool(find_name(IMAGE_FOLDERS, inside) and find_name(MASK_FOLDERS, inside))


def parse_class_lines(text: str, *, source: str) -> list[tuple[str, Color | None]]:
    """(name, color or None) of every line of a class file; blank lines and comments (// or #) are left out."""
    found: list[tuple[str, Color | None]] = []
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith(("//", "#")):
            continue
        match = next((match for pattern in _COLORS if (match := pattern.fullmatch(line))), None)
        if match is None:
            found.append((line, None))
            continue
        parts = match.groupdict()
        whole = parts.get("hex")
        color = tuple(bytes.fromhex(whole)) if whole else tuple(int(parts[band]) for band in "rgb")
        if max(color) > 255:
            raise DataError(f"{source}: {one_line(line)!r} has a color above 255; write name #rrggbb.")
        found.append((match["name"].strip(), (color[0], color[1], color[2])))
    if not found:
        raise DataError(f"{source} has no class names; write one per line.")
    return found


def label_table(lines: list[tuple[str, Color | None]], *, source: str, zero_ignored: bool = False) -> LabelTable:
    """The label table of a class file: line k is number k (k + 1 with `zero_ignored`), with colors if given."""
    given = [color is not None for _, color in lines]
    if any(given) and not all(given):
        without = lines[given.index(False)][0]
        raise DataError(f"{source} gives colors to some classes, but none to {one_line(without)!r}; give all or none.")
    values: dict[int, int] = {IGNORE: IGNORE, **({0: IGNORE} if zero_ignored else {})}
    colors: dict[Color, int] = {}
    names: list[str] = []
    shown: list[Color] = []
    for number, (name, color) in enumerate(lines, start=int(zero_ignored)):
        label = IGNORE if name.lower() in IGNORED_NAMES else len(names)
        values[number] = label
        if color is not None:
            if color in colors:
                raise DataError(f"{source}: two classes have the color #{bytes(color).hex()}; give each its own.")
            colors[color] = label
        if label != IGNORE:
            names.append(name)
            shown += [color] if color is not None else []
    hint = f"correct the mask, or add a line to {source}"
    return LabelTable(classes=tuple(names), values=values, colors=colors, palette=tuple(shown), hint=hint)


def _folders(tree: FileTree, split: str) -> tuple[str, str, str]:
    """(folder of images, folder of masks, the split's list or "")."""
    top, names = tree.folders(), SPLIT_NAMES[split]
    image_top, mask_top = find_name(IMAGE_FOLDERS, top), find_name(MASK_FOLDERS, top)
    if image_top and mask_top:
        own = find_name(names, tree.folders(image_top))
        if own:
            there = find_name(names, tree.folders(mask_top))
            if not there:
                raise DataError(f"data={tree.name} has {image_top}/{own} but no {mask_top}/{own}; add the masks.")
            return f"{image_top}/{own}", f"{mask_top}/{there}", ""
        if any(map(is_split_name, tree.folders(image_top))):
            raise DataError(f"data={tree.name} has no {image_top}/{split}; add it with {mask_top}/{split}.")
        return image_top, mask_top, _list_of(tree, split)
    own = find_name(names, top)
    inside = tree.folders(own) if own else []
    images, masks = find_name(IMAGE_FOLDERS, inside), find_name(MASK_FOLDERS, inside)
    if own and images and masks:
        return f"{own}/{images}", f"{own}/{masks}", ""
    raise DataError(
        f"data={tree.name} has no folders of images and masks for {split}; put them into images/{split} and "
        f"masks/{split}."
    )


def _list_of(tree: FileTree, split: str) -> str:
    lists = {each: find_split_list(tree, each) for each in SPLITS}
    if any(lists.values()) and not lists[split]:
        other = next(filter(None, lists.values()))
        raise DataError(f"data={tree.name} has {other} but no {split}.txt; add it, or remove {other}.")
    return lists[split]


def _has_splits(tree: FileTree) -> bool:
    top = tree.folders()
    return any(is_split_name(name) for folder in ("", *top) for name in tree.folders(folder))


def _part(images: list[str], split: str, fraction: float, seed: int) -> list[str]:
    if split == "val" and fraction == 1:
        return images
    if not 0 < fraction < 1:
        raise DataError(f"val_fraction={fraction} is not a fraction of the data; use a number between 0 and 1.")
    if len(images) < 2:
        raise DataError("one image cannot be split into train and val; add some, or give both folders.")
    held_out = min(max(round(fraction * len(images)), 1), len(images) - 1)
    order = permutation(len(images), key(seed, "split"))
    return [images[index] for index in sorted(order[:held_out] if split == "val" else order[held_out:])]


def _every_mask(tree: FileTree) -> list[str]:
    """The paths of all masks of the tree, of both splits."""
    found = []
    for split in SPLITS:
        try:
            folder = _folders(tree, split)[1]
        except DataError:
            continue
        found += [f"{folder}/{path}" for path in tree.files(folder) if path.lower().endswith(".png")]
    return sorted(set(found))


def _named_table(tree: FileTree, file: str, masks: list[str]) -> LabelTable:
    text = tree.text(file)
    if text is None:
        held = _held(tree, masks[:: max(len(masks) // _SAMPLED_MASKS, 1)])
        how = "one class name per line" if not held or isinstance(held[0], int) else "a line NAME #rrggbb for each"
        raise DataError(
            f"data={tree.name} has no {file}; its masks hold {_shown(held)}: write {how} into it, or give "
            "data_options.classes=found."
        )
    source = f"{tree.name}/{file}"
    table = label_table(parse_class_lines(text, source=source), source=source)
    if len(table.classes) == 1 and not table.colors and _binary(tree, masks):
        name = one_line(table.classes[0])
        raise DataError(f"{source} names one class, {name!r}, but masks hold 0 and 255; write background and {name}.")
    if len(table.classes) == 2 and not table.colors and _binary(tree, masks):
        logger.info("%s: masks hold only 0 and 255; 255 is read as %r.", tree.name, table.classes[1])
        return replace(table, values={0: 0, 255: 1})
    return table


def _found_table(tree: FileTree, masks: list[str]) -> LabelTable:
    """A table with a class for each value or color in the masks."""
    held = _held(tree, masks)
    numbers = [value for value in held if isinstance(value, int) and value != IGNORE]
    colors = [value for value in held if not isinstance(value, int)]
    if numbers and colors:
        raise DataError(f"data={tree.name}: some masks hold numbers, others colors; save all in the same way.")
    if not numbers and not colors:
        raise DataError(f"data={tree.name}: no mask can be read, so that no classes can be found.")
    logger.info("%s: %d classes found in %d masks; %s can name them.", tree.name, len(held), len(masks), CLASS_FILE)
    if numbers == [0] and IGNORE in held:
        return LabelTable(classes=("class 0", "class 255"), values={0: 0, 255: 1})
    if numbers:
        values = {IGNORE: IGNORE, **{value: label for label, value in enumerate(numbers)}}
        return LabelTable(classes=tuple(f"class {value}" for value in numbers), values=values)
    names = tuple(f"#{bytes(color).hex()}" for color in colors)
    return LabelTable(classes=names, colors={color: label for label, color in enumerate(colors)}, palette=tuple(colors))


def _held(tree: FileTree, masks: list[str]) -> list[int | Color]:
    """The sorted numbers and colors in `masks`; DataError if there are too many to be classes."""
    numbers: set[int] = set()
    codes: set[int] = set()
    for path in masks:
        try:
            stored = read_mask(tree.read(path), name=path)
        except ImageError:
            continue
        if stored.ndim == 2:
            numbers.update(np.unique(stored).tolist())
        else:
            codes.update(np.unique(color_codes(stored)).tolist())
        for kind, found in (("values", numbers), ("colors", codes)):
            if len(found) > IGNORE:
                raise DataError(
                    f"data={tree.name}: masks hold more than {IGNORE} different {kind} (such as in {one_line(path)}); "
                    "they are photographs, instance numbers, or were smoothed: save classes as a plain PNG."
                )
    colors = [(code >> 16, code >> 8 & 255, code & 255) for code in sorted(codes)]
    return [*sorted(numbers), *colors]


def _binary(tree: FileTree, masks: list[str]) -> bool:
    held = _held(tree, masks[:: max(len(masks) // _SAMPLED_MASKS, 1)])
    # The object may be in none of the masks that were read.
    held = _held(tree, masks) if held == [0] else held
    return 255 in held and set(held) <= {0, 255}


def _shown(held: list[int | Color]) -> str:
    names = [str(value) if isinstance(value, int) else f"#{bytes(value).hex()}" for value in held]
    return ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "") if names else "nothing"
