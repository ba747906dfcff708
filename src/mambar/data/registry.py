"""Opens a dataset by registered name, by path, or from an object, for every kind of task."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from mambar.data.classification.cifar10 import Cifar10, Cifar10Jpeg, has_npz
from mambar.data.classification.digits import Digits
from mambar.data.classification.folder import ImageFolder, folder_splits
from mambar.data.classification.hf_datasets import PREFIX, HuggingFaceDataset, hf_splits, saved_to_disk
from mambar.data.classification.imagenet_variants import ImageNetVariant
from mambar.data.classification.tiny_imagenet import is_tiny_imagenet, tiny_imagenet
from mambar.data.classification.voc_objects import is_voc_objects, voc_objects
from mambar.data.dataset import SPLITS, ImageDataset, Subset
from mambar.data.detection.coco import CocoImages, is_coco
from mambar.data.detection.mask_regions import MaskRegions
from mambar.data.detection.shape_objects import ShapeObjects
from mambar.data.keys import key, permutation
from mambar.data.segmentation.layouts import segmentation_factory
from mambar.data.segmentation.shape_masks import ShapeMasks
from mambar.data.shards.dataset import TarShards
from mambar.data.shards.index import index_path, shard_files, shard_splits
from mambar.data.synthetic.canvas import CanvasDataset
from mambar.data.synthetic.mosaics import Mosaics
from mambar.data.synthetic.shapes import Shapes
from mambar.data.user_dataset import UserDataset, split_object
from mambar.errors import DataError
from mambar.messages import did_you_mean, one_line

Factory = TypeVar("Factory", bound=Callable[..., Any])
_LIMIT_SEED = 0


def _classification_factory(path: Path) -> Callable[..., ImageDataset]:
    if not path.is_dir():
        raise DataError(f"data={path} is a file; give the folder that holds the data.")
    if has_npz(path):
        return Cifar10Jpeg
    if (path / "cifar-10-batches-py").is_dir():
        return Cifar10
    if saved_to_disk(path):
        return HuggingFaceDataset
    if any(index_path(path, split).is_file() or shard_files(path, split) for split in SPLITS):
        return TarShards
    if is_tiny_imagenet(path):
        return tiny_imagenet
    if is_voc_objects(path):
        return voc_objects
    return ImageFolder


def _images_factory(path: Path) -> Callable[..., ImageDataset]:
    """That of classification; a folder of images needs no class sub-folders."""
    found = _classification_factory(path)
    return partial(ImageFolder, require_classes=False) if found is ImageFolder else found


def _detection_factory(path: Path) -> Callable[..., ImageDataset]:
    if is_coco(path):
        return CocoImages
    if path.is_dir() and is_tiny_imagenet(path):
        return tiny_imagenet
    if path.is_dir() and is_voc_objects(path):
        return voc_objects
    open_pairs = segmentation_factory(path)

    def open_regions(path: Path, split: str, **options: Any) -> MaskRegions:
        try:
            return MaskRegions(open_pairs(path, split, **options))
        except DataError as error:
            raise DataError(f"{error} Boxes are read from annotations/instances_{split}.json (COCO).") from error

    open_regions.__signature__ = inspect.signature(open_pairs)  # type: ignore[attr-defined]
    return open_regions


# Kind → name → factory, called as factory(split=..., **options).
DATASETS: Final[dict[str, dict[str, Callable[..., Any]]]] = {
    "classification": {
        "digits": Digits,
        "shapes": Shapes,
        "cifar10": Cifar10,
        "imagenet_variant": ImageNetVariant,
        "tiny_imagenet": tiny_imagenet,
    },
    "segmentation": {"shapes": ShapeMasks, "mosaics": Mosaics},
    "detection": {"shapes": ShapeObjects},
}
# Images for training without labels: those of every classification dataset.
DATASETS["images"] = DATASETS["classification"]
# Kind → function that returns the factory for a path, called as factory(path, split=..., **options).
PATH_FACTORIES: Final[dict[str, Callable[[Path], Callable[..., Any]]]] = {
    "classification": _classification_factory,
    "segmentation": segmentation_factory,
    "detection": _detection_factory,
    "images": _images_factory,
}
# Kinds without masks or boxes.
_IMAGE_KINDS: Final = ("classification", "images")


def register_dataset(
    name: str, factory: Factory | None = None, *, kind: str = "classification"
) -> Factory | Callable[[Factory], Factory]:
    """Registers a dataset class or function under `name`; without `factory` it returns a decorator.

    `factory(split=..., **options)` returns an object with `__len__`, `__getitem__` and `classes` (see `UserDataset`).
    Its other parameters become `data_options`. `kind` is the kind of dataset that a task opens: "classification",
    "images" (its labels are not used), "segmentation", "detection", or the name of a new kind.
    """
    if factory is None:
        return lambda given: _register(name, given, kind)
    return _register(name, factory, kind)


def _register(name: str, factory: Factory, kind: str) -> Factory:
    if not name or any(character in name for character in "/\\:."):
        raise DataError(f"name={one_line(name)!r} is not a dataset name; use letters, digits, - and _.")
    known = DATASETS.setdefault(kind, {}).get(name)
    # A class that is defined again, as in a notebook, replaces the earlier one.
    if known is not None and known.__module__ != factory.__module__:
        raise DataError(f"name={name!r} is already a {kind} dataset of {known.__module__}; choose another name.")
    DATASETS[kind][name] = factory
    return factory


def open_dataset(
    data: Any,
    split: str,
    *,
    kind: str = "classification",
    limit: int | None = None,
    val_limit: int | None = None,
    **options: Any,
) -> ImageDataset:
    """The split ("train" or "val") of a dataset of the given kind.

    Args:
        data: A registered name, a path, or an object. Classification: digits, shapes (options: the fields of `Shapes`),
            cifar10 (options `root`, `download`), tiny_imagenet (option `root`), imagenet_variant (options of
            `ImageNetVariant`), "hf:NAME" on the Hugging Face hub, or a folder: CIFAR-10, the output of `save_to_disk`,
            tar shards, Tiny-ImageNet, VOC's boxes, class sub-folders. Segmentation: shapes, mosaics (options: the
            fields of `Mosaics`), or a folder or .zip: SceneParse150, full ADE20K, VOC, images and masks (options of
            `find_folder`). Detection: shapes, or a folder: COCO annotations, Tiny-ImageNet, VOC's boxes, images and
            masks, whose connected regions are objects. Images: as classification, but a folder of images needs no
            class sub-folders. "./digits" is a path, "digits" is a name. An object is a mapping
            from split to dataset, or one dataset, which is split by class (options `val_fraction`, `split_seed`).
        split: "train", "val", or "test" for data with both validation and test images (`has_test_split`).
        kind: The kind of dataset: a key of `DATASETS`.
        limit: Maximum number of images, always the same ones.
        val_limit: The limit of the "val" split, in place of `limit`.
        options: Options of the dataset. Classification also takes `canvas`: each image is pasted at a random position
            on a plain square of that side length in pixels; its mask is the pasted area.
    """
    if kind not in DATASETS:
        raise DataError(f"kind={one_line(repr(kind))} is unknown; use {', '.join(DATASETS)}, or register a dataset.")
    if split not in SPLITS:
        _check_split(split, data, kind, options)
    limit = _limit_of(split, limit, val_limit)
    canvas = options.pop("canvas", None) if kind in _IMAGE_KINDS else None
    factory, arguments, name = _find(data, kind)
    parameters = list(inspect.signature(factory).parameters.values())[len(arguments) :]
    _check_options(name, options, parameters, kind)
    try:
        dataset = factory(*arguments, split=split, **options)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise DataError(f"data={name} cannot be opened with {one_line(given)}: {one_line(str(error))}.") from error
    if not isinstance(dataset, ImageDataset):
        dataset = UserDataset(dataset, split=split, name=name)
    if limit is not None and limit < len(dataset):
        chosen = permutation(len(dataset), key(_LIMIT_SEED, "limit", split))[:limit]
        dataset = Subset(dataset, sorted(chosen.tolist()), name=dataset.name)
    return dataset if canvas is None else CanvasDataset(dataset, split, size=canvas)


def has_test_split(data: Any, *, kind: str = "classification", data_options: Mapping[str, Any] | None = None) -> bool:
    """True if the data have labeled test images beside the validation images.

    A mapping, a folder, tar shards or a dataset of Hugging Face can have them.
    """
    return "test" in _named_splits(data, kind, data_options or {})


def _named_splits(data: Any, kind: str, options: Mapping[str, Any]) -> Mapping[str, str]:
    """Split → its name in the data; a split without one is held out of "train", or there is none."""
    if isinstance(data, Mapping):
        return {str(split): str(split) for split in data}
    if kind not in _IMAGE_KINDS or not isinstance(data, str | Path) or data in DATASETS[kind]:
        return {}
    factory, (source,), _ = _find(data, kind)
    if factory is HuggingFaceDataset:
        return hf_splits(source, options)
    if factory is TarShards:
        return shard_splits(source)
    return folder_splits(source) if getattr(factory, "func", factory) is ImageFolder else {}


def _check_split(split: str, data: Any, kind: str, options: Mapping[str, Any]) -> None:
    """Raises DataError unless the data have the split, which is none of `SPLITS`; the error names those there."""
    names = _named_splits(data, kind, options)
    if split == "test" and "test" in names:
        return
    found = list(names) if isinstance(data, Mapping) else [*SPLITS, *(each for each in names if each not in SPLITS)]
    only = "; its test images are split='val'" if "test" in names.get("val", "").lower() else ""
    raise DataError(
        f"split={one_line(repr(split))} is not there: data={one_line(str(data))} has {' and '.join(found)}{only}."
    )


def open_evaluation_dataset(
    data: Any, split: str | None = None, *, kind: str = "classification", **options: Any
) -> ImageDataset:
    """The images on which a model is evaluated: a split, or by default all images of data without a validation split.

    Training holds out a part of such data; evaluation has no use for the rest of them.
    """
    factory, _, _ = _find(data, kind)
    if split is None and "val_fraction" in inspect.signature(factory).parameters:
        options = {"val_fraction": 1.0, **options}
    return open_dataset(data, split or "val", kind=kind, **options)


def _find(data: Any, kind: str) -> tuple[Callable[..., Any], tuple[Any, ...], str]:
    """(factory, its arguments before the split, the name of the data in messages)."""
    if isinstance(data, str) and data in DATASETS[kind]:
        return DATASETS[kind][data], (), data
    if not isinstance(data, str | Path):
        return split_object, (data,), type(data).__name__
    if kind in _IMAGE_KINDS and str(data).startswith(PREFIX):
        return HuggingFaceDataset, (str(data),), str(data)
    path = Path(data).expanduser()
    if not path.exists():
        names = list(DATASETS[kind])
        hint = did_you_mean(str(data), names, otherwise=f"give a folder, or a name such as {', '.join(names[:3])}.")
        raise DataError(f"data={one_line(str(path))} does not exist (looked in {one_line(Path.cwd())}); {hint}")
    if kind not in PATH_FACTORIES:
        raise DataError(f"data={one_line(str(path))}: {kind} has no path layouts; use {', '.join(DATASETS[kind])}.")
    return PATH_FACTORIES[kind](path), (path,), str(path)


def _check_options(data: str, options: Mapping[str, Any], parameters: Sequence[inspect.Parameter], kind: str) -> None:
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return
    accepted = [each.name for each in parameters if each.name != "split"]
    accepted += ["limit", "val_limit", *(["canvas"] if kind in _IMAGE_KINDS else [])]
    for name in options:
        if name not in accepted:
            hint = did_you_mean(name, accepted, otherwise=f"it takes {', '.join(accepted)}.")
            raise DataError(f"data={one_line(data)} has no option {one_line(name)!r}; {hint}")


def _limit_of(split: str, limit: int | None, val_limit: int | None) -> int | None:
    for name, count in (("limit", limit), ("val_limit", val_limit)):
        if count is not None and (type(count) is not int or count < 1):
            raise DataError(f"{name}={one_line(repr(count))} is not a count; use 1 or more.")
    return val_limit if split == "val" and val_limit is not None else limit
