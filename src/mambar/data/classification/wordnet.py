"""Readable names of ImageNet's WordNet ids."""

import re
from collections import Counter

_WORDNET_ID = re.compile(r"n\d{8}")


def are_wordnet_ids(names: tuple[str, ...]) -> bool:
    """True if every name is a WordNet id, such as n01440764."""
    return all(_WORDNET_ID.fullmatch(name) for name in names)


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
