"""Lists of the images of a split: one name, path, or pair of image and mask on each line."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mambar.data.dataset import SPLIT_NAMES
from mambar.data.loading.file_tree import FileTree
from mambar.errors import DataError
from mambar.image_paths import is_image_name
from mambar.messages import one_line

logger = logging.getLogger("mambar.data")

_SEPARATOR = re.compile(r"[,;\s]")


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """A line of a split list, and the files that it names; "" where it names none."""

    line: str
    image: str
    mask: str = ""


def find_split_list(tree: FileTree, split: str, folder: str = "") -> str:
    """The path of a split's list, such as train.txt, under one of the names of the split; "" if there is none."""
    start = f"{folder}/" if folder else ""
    paths = (f"{start}{name}.txt" for name in SPLIT_NAMES[split])
    return next((path for path in paths if tree.has_file(path)), "")


def read_split_list(tree: FileTree, path: str, images: Sequence[str], masks: Sequence[str]) -> list[ListedImage]:
    """The lines of a list with the image and mask that each names; a warning counts and names lines without an image.

    A line holds a name with or without suffix and folders, or image and mask, separated by white space, comma or
    semicolon. DataError for an empty list, and if no line names an image.
    """
    source = f"{tree.name}/{path}"
    image_names, mask_names = _by_name(images), _by_name(masks)
    lines = [line.strip() for line in (tree.text(path) or "").splitlines()]
    found = [_listed(line, image_names, mask_names) for line in lines if line]
    if not found:
        raise DataError(f"{source} lists no image; write one name per line.")
    unknown = [each.line for each in found if not each.image]
    if len(unknown) == len(found):
        raise DataError(
            f"{source}: none of its {len(found)} names is an image, such as {one_line(unknown[0])!r}; write names as "
            f"{one_line(images[0]) if images else 'a.jpg'!r}, one per line."
        )
    if unknown:
        logger.warning(
            "%s: %d of %d names match no image, such as %r.", source, len(unknown), len(found), one_line(unknown[0])
        )
    return found


def _by_name(paths: Sequence[str]) -> dict[str, str]:
    """Path, and path without suffix → path."""
    return {**{str(PurePosixPath(path).with_suffix("")): path for path in paths}, **{path: path for path in paths}}


def _listed(line: str, images: dict[str, str], masks: dict[str, str]) -> ListedImage:
    text = line.replace("\\", "/")
    # Names and folders may contain separators: a pair of two files comes first, then the line as one name.
    cuts = [(text[: cut.start()].strip(), text[cut.end() :].strip(" \t,;")) for cut in _SEPARATOR.finditer(text)]
    pairs = [(_look_up(first, images), _look_up(second, masks)) for first, second in cuts]
    whole = _look_up(text, images)
    folders = text.removesuffix(whole) if whole else ""
    names = [pair for pair in pairs if all(pair)]
    names += [(whole, "")] if whole and not _SEPARATOR.search(folders) else []
    names += [pair for pair in pairs if pair[0]]
    image, mask = next(iter(names), (whole, ""))
    return ListedImage(line=line, image=image, mask=mask)


def _look_up(name: str, known: dict[str, str]) -> str:
    """The known path that the name ends with, with or without suffix."""
    parts = name.split("/")
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    if is_image_name(name):
        ends += [str(PurePosixPath(end).with_suffix("")) for end in ends if PurePosixPath(end).name]
    return next((known[end] for end in ends if end in known), "")
