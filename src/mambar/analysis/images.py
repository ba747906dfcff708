"""Named images to analyze: files, the built-in photographs, or a part of a dataset."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.data import ImageDataset, Sample
from mambar.data.boxed_images import object_mask
from mambar.data.keys import key, permutation
from mambar.data.loading.images import read_image
from mambar.data.loading.unreadable_images import readable_samples
from mambar.data.synthetic.photographs import photographs
from mambar.errors import ImageError, InputError
from mambar.image_file import MAX_PIXELS
from mambar.image_paths import find_images

logger = logging.getLogger("mambar.analysis")


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedImages:
    """Named images without labels: an `ImageDataset` whose labels are all -1."""

    name: str
    images: Mapping[str, UInt8[Tensor, "channels height width"]]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(list(self.images.values())[index], -1)

    def fingerprint(self) -> str:
        """Names and shapes of the images."""
        return ", ".join(f"{name} {tuple(image.shape)}" for name, image in self.images.items())


def builtin_images() -> NamedImages:
    """The photographs of scikit-image."""
    return NamedImages(name="photographs of scikit-image", images=photographs())


def images_from_paths(paths: Sequence[str | Path], *, limit: int = 1000, max_pixels: int = MAX_PIXELS) -> NamedImages:
    """The first `limit` images of files, folders and patterns; an unreadable one is left out with a warning."""
    files = find_images(paths, option="images=")
    names = [file.name for file in files]
    images = {}
    for file in files[:limit]:
        try:
            name = file.name if names.count(file.name) == 1 else str(file)
            images[name] = read_image(file, max_pixels=max_pixels)
        except ImageError as error:
            if len(files) == 1:
                raise
            logger.warning("left out an unreadable image: %s", error)
    if not images:
        raise InputError("images= has no readable image; give files, folders or patterns of PNG, JPEG or WEBP.")
    if len(files) > limit:
        logger.warning("images= has %d images; the first %d are used.", len(files), limit)
    return NamedImages(name="images given", images=images)


def sample_gallery(dataset: ImageDataset, count: int, *, seed: int) -> NamedImages:
    """`count` images of a dataset, sampled by `seed` and named by number and class; the first ones of `NamedImages`."""
    if isinstance(dataset, NamedImages):
        return NamedImages(name=dataset.name, images=dict(list(dataset.images.items())[:count]))
    chosen = permutation(len(dataset), key(seed, "gallery"))[:count]
    images = {}
    for index, sample in readable_samples(dataset, sorted(chosen.tolist())):
        kind = f", {dataset.classes[sample.label]}" if 0 <= sample.label < len(dataset.classes) else ""
        images[f"image {index}{kind}"] = sample.image
    return NamedImages(name=dataset.name, images=images)


def masks_and_pixels(
    analyzed: AnalyzedModel, dataset: ImageDataset, indices: Iterable[int]
) -> Iterator[tuple[UInt8[Tensor, "1 height width"], UInt8[Tensor, "1 channels height width"]]]:
    """Mask (or area of the boxes) and pixels of each numbered image after resize and crop.

    Stops at the first image that has neither a mask nor boxes.
    """
    for _, sample in readable_samples(dataset, indices):
        mask = object_mask(sample)
        if mask is None:
            return
        yield analyzed.resize_mask(mask)[None], analyzed.pixels(sample.image)[None]
