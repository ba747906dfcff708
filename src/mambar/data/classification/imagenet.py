"""ImageNet's layout: `train/` and `val/` with one sub-folder per WordNet id."""

import re
from collections import Counter
from pathlib import Path

from mambar.data.classification.folder import ImageFolder, class_folders, split_folders
from mambar.data.dataset import Sample
from mambar.errors import DataError
from mambar.image_file import MAX_PIXELS
from mambar.messages import one_line

_WORDNET_ID = re.compile(r"n\d{8}")


class ImageNet:
    """ImageNet or a subset of it, with readable names of the WordNet ids as class names.

    Labels follow the sorted ids, as in all published models. Unlike in `ImageFolder`, EXIF orientation is not applied,
    as in torchvision and the official evaluation. For splits and unreadable images see `ImageFolder`.
    """

    def __init__(
        self,
        root: Path | str,
        split: str,
        *,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.folder = ImageFolder(
            root,
            split,
            val_fraction=val_fraction,
            split_seed=split_seed,
            apply_exif_orientation=False,
            max_pixels=max_pixels,
        )
        self.name = self.folder.name
        self.wordnet_ids = self.folder.classes
        if not are_wordnet_ids(self.wordnet_ids):
            other = next(name for name in self.wordnet_ids if not are_wordnet_ids((name,)))
            raise DataError(
                f"class folder {one_line(other)!r} in {self.folder.folder} is not a WordNet id such as n01440764; "
                "open it as a plain folder."
            )
        self.classes = wordnet_names(self.wordnet_ids)
        self.labels = self.folder.labels
        self.unreadable = self.folder.unreadable

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Sample:
        return self.folder[index]

    def path(self, index: int) -> Path:
        return self.folder.path(index)

    def fingerprint(self) -> str:
        """sha256 of the ids and of every image's relative path and label."""
        return self.folder.fingerprint()


def are_wordnet_ids(names: tuple[str, ...]) -> bool:
    """True if every name is a WordNet id, such as n01440764."""
    return all(_WORDNET_ID.fullmatch(name) for name in names)


def named_by_wordnet(root: Path) -> bool:
    """True if every class sub-folder is named by a WordNet id."""
    try:
        return are_wordnet_ids(tuple(class_folders(split_folders(root).get("train", root))))
    except DataError:
        return False


def wordnet_names(ids: tuple[str, ...]) -> tuple[str, ...]:
    """Readable names of WordNet ids, from timm's table of 21,844; equal names are followed by their id."""
    from timm.data.imagenet_info import ImageNetInfo

    table = ImageNetInfo()
    names: list[str] = []
    for own in ids:
        try:
            names.append(table.label_name_to_description(own))
        # An unknown id is its own name.
        except KeyError:
            names.append(own)
    times = Counter(names)
    return tuple(f"{name} ({own})" if times[name] > 1 else name for name, own in zip(names, ids, strict=True))
