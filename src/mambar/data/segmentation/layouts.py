"""Recognizes the layout of a folder or .zip of images and masks."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mambar.data.loading.file_tree import FileTree, open_tree, single_folder
from mambar.data.segmentation import ade20k, voc
from mambar.data.segmentation.folder import find_folder, looks_like_folder
from mambar.data.segmentation.image_mask_pairs import ImageMaskPairs, Listing
from mambar.image_file import MAX_PIXELS

# Layout → (whether a tree has it, what lists a split of it); tried in this order.
LAYOUTS: Final[dict[str, tuple[Callable[[FileTree], bool], Callable[..., Listing]]]] = {
    "SceneParse150": (ade20k.looks_like_scene_parse, ade20k.find_scene_parse),
    "full ADE20K": (ade20k.looks_like_full_ade20k, ade20k.find_full_ade20k),
    "VOC": (voc.looks_like_voc, voc.find_voc),
    "images and masks": (looks_like_folder, find_folder),
}


def segmentation_factory(path: Path) -> Callable[..., ImageMaskPairs]:
    """The factory `(path, split, **options)` for the data at `path`; its signature names the layout's options."""
    tree, find = _recognize(open_tree(path))

    def open_pairs(path: Path, split: str, *, max_pixels: int = MAX_PIXELS, **options: Any) -> ImageMaskPairs:
        name = path.name or str(path)
        return ImageMaskPairs(find(tree, split, **options), split, name=name, max_pixels=max_pixels)

    own, options = (inspect.signature(function).parameters.values() for function in (open_pairs, find))
    parameters = [*list(own)[:-1], *(each for each in options if each.kind is inspect.Parameter.KEYWORD_ONLY)]
    open_pairs.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return open_pairs


def _recognize(tree: FileTree) -> tuple[FileTree, Callable[..., Listing]]:
    """The tree in which a layout is found, and what lists a split of it."""
    inside: FileTree | None = tree
    while inside is not None:
        for level in (0, 1):
            trees = [inside.subtree(folder) for folder in inside.folders()] if level else [inside]
            for matches, find in LAYOUTS.values():
                matching = [each for each in trees if matches(each)]
                if len(matching) == 1:
                    return matching[0], find
        inside = single_folder(inside)
    # Its error names what is missing.
    return tree, find_folder
