"""Datasets by name or by path: the one place that knows them all."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mambar.data.classification.cifar10 import Cifar10, Cifar10Jpeg, has_npz
from mambar.data.classification.digits import Digits
from mambar.data.classification.folder import SPLITS, ImageFolder
from mambar.data.classification.hf_datasets import PREFIX, HuggingFaceDataset, saved_to_disk
from mambar.data.classification.imagenet import ImageNet, named_by_wordnet
from mambar.data.dataset import ImageDataset, Subset, limit_of
from mambar.data.keys import key, permutation
from mambar.data.shards.dataset import TarShards
from mambar.data.shards.index import index_path, shard_files
from mambar.data.synthetic.canvas import CanvasDataset
from mambar.data.synthetic.shapes import Shapes
from mambar.errors import DataError
from mambar.messages import did_you_mean, one_line

_LIMIT_SEED = 0


def _shapes(split: str, **options: Any) -> Shapes:
    return Shapes(split=split, **options)


def _cifar10(split: str, *, root: Path | str = Path("data"), download: bool = False) -> Cifar10:
    return Cifar10(root, split, download=download)


DATASETS: dict[str, Callable[..., ImageDataset]] = {"digits": Digits, "shapes": _shapes, "cifar10": _cifar10}
# What to look at for the names of the options, where it is not the opener itself.
_OPTIONS = {"shapes": Shapes}
# Options of every dataset.
_FOR_ALL = ("limit", "val_limit", "canvas")


def open_dataset(
    data: str | Path,
    split: str,
    *,
    limit: int | None = None,
    val_limit: int | None = None,
    canvas: int | None = None,
    **options: Any,
) -> ImageDataset:
    """The split ("train" or "val") of the dataset that `data` names: a built-in's name, or a path.

    Built in: digits, shapes (options: the fields of `Shapes`), cifar10 (torchvision's; options `root` and
    `download`). "hf:NAME" is a set on the Hugging Face hub. A path is looked at: CIFAR-10 as .npz or as torchvision
    stores it, what Hugging Face's `save_to_disk` wrote, a folder of tar shards, class folders called by WordNet ids
    (ImageNet) or by anything else. "./digits" is a path, "digits" is not.

    `limit` keeps that many images at most, always the same ones; `val_limit` acts on "val" in its place. `canvas`
    pastes each at a random place on a plain canvas of so many pixels a side, with the mask of where it lies.
    """
    if split not in SPLITS:
        raise DataError(f"split={split!r} is unknown; use {' or '.join(SPLITS)}.")
    opener, arguments, accepted = _find(data)
    for name in options:
        if name not in accepted:
            names = [*accepted, *_FOR_ALL]
            hint = did_you_mean(name, names, otherwise=f"it takes {', '.join(names)}.")
            raise DataError(f"data={data} has no option {one_line(name)!r}; {hint}")
    try:
        dataset = opener(*arguments, split, **options)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise DataError(f"data={data} cannot be opened with {one_line(given)}: {one_line(str(error))}.") from error
    limit = limit_of(split, limit, val_limit)
    kept = dataset if limit is None else _limited(dataset, limit, split)
    return kept if canvas is None else CanvasDataset(kept, split, size=canvas)


def _find(data: str | Path) -> tuple[Callable[..., ImageDataset], tuple[Path | str, ...], list[str]]:
    """(opener, its arguments before the split, the options it takes)."""
    if isinstance(data, str) and data in DATASETS:
        opener = DATASETS[data]
        return opener, (), _option_names(_OPTIONS.get(data, opener))
    if str(data).startswith(PREFIX):
        return HuggingFaceDataset, (str(data),), _option_names(HuggingFaceDataset)
    path = Path(data)
    opener = _opener_of(path)
    return opener, (path,), _option_names(opener)


def _opener_of(path: Path) -> Callable[..., ImageDataset]:
    if not path.is_dir():
        if path.exists():
            raise DataError(f"data={path} is a file; give the folder that holds the data.")
        known = ", ".join(DATASETS)
        raise DataError(f"data={path} does not exist; give a folder, or one of the built-in sets: {known}.")
    if has_npz(path):
        return Cifar10Jpeg
    if (path / "cifar-10-batches-py").is_dir():
        return Cifar10
    if saved_to_disk(path):
        return HuggingFaceDataset
    if any(index_path(path, split).is_file() or shard_files(path, split) for split in SPLITS):
        return TarShards
    return ImageNet if named_by_wordnet(path) else ImageFolder


def _option_names(opener: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(opener).parameters.values()
    return [
        parameter.name
        for parameter in parameters
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name != "split"
    ]


def _limited(dataset: ImageDataset, limit: int, split: str) -> ImageDataset:
    if limit >= len(dataset):
        return dataset
    chosen = permutation(len(dataset), key(_LIMIT_SEED, "limit", split))[:limit]
    return Subset(dataset, sorted(chosen.tolist()), name=dataset.name)
