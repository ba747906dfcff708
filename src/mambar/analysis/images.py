"""Images to look at: files, the built-in photographs, or a part of a dataset, each with its name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.data import ImageDataset, Sample, evaluation_batches
from mambar.data.keys import key, permutation
from mambar.data.loading.images import IMAGE_SUFFIXES, read_image
from mambar.data.loading.unreadable_images import readable_samples
from mambar.data.synthetic.photographs import photographs
from mambar.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedImages:
    """Named images without classes; an `ImageDataset` whose labels are all -1."""

    name: str
    images: Mapping[str, UInt8[Tensor, "channels height width"]]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(list(self.images.values())[index], -1)

    def fingerprint(self) -> str:
        """Names and sizes, for the record."""
        return ", ".join(f"{name} {tuple(image.shape)}" for name, image in self.images.items())


def builtin_images() -> NamedImages:
    """The photographs of scikit-image, colour first."""
    return NamedImages(name="photographs of scikit-image", images=photographs())


def images_from_paths(paths: Sequence[str | Path], *, limit: int = 1000) -> NamedImages:
    """Image files, and the image files of folders (not of their sub-folders), in the order of their names."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise InputError(
                    f"images={path} holds no image; give a folder with {', '.join(sorted(IMAGE_SUFFIXES))}."
                )
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"images={path} does not exist; give image files or a folder of them.")
    if not files:
        raise InputError("images= names no file; give image files or a folder of them.")
    return NamedImages(name="images given", images={file.name: read_image(file) for file in files[:limit]})


def sample_gallery(dataset: ImageDataset, count: int, *, seed: int) -> NamedImages:
    """`count` images of a dataset, drawn by `seed`, named by number and class; the figure's label names the data."""
    if isinstance(dataset, NamedImages):
        return NamedImages(name=dataset.name, images=dict(list(dataset.images.items())[:count]))
    chosen = permutation(len(dataset), key(seed, "gallery"))[:count]
    images = {}
    for index, sample in readable_samples(dataset, sorted(chosen.tolist())):
        kind = f", {dataset.classes[sample.label]}" if 0 <= sample.label < len(dataset.classes) else ""
        images[f"image {index}{kind}"] = sample.image
    return NamedImages(name=dataset.name, images=images)


@dataclass(kw_only=True, eq=False)
class Reader:
    """Batches of a dataset as the model reads them, any number of times; `indices` are those of the last pass."""

    analyzed: AnalyzedModel
    dataset: ImageDataset
    batch_size: int
    workers: int = 0
    limit: int | None = None
    indices: list[int] = field(default_factory=list)

    def labeled(self) -> Iterator[tuple[Float[Tensor, "_ channels height width"], Int64[Tensor, "_"]]]:
        """Images and labels; an unreadable image is left out."""
        self.indices = []
        for batch in evaluation_batches(
            self.dataset, self.analyzed.preprocess, batch_size=self.batch_size, workers=self.workers
        ):
            left = None if self.limit is None else self.limit - len(self.indices)
            if left is not None and left <= 0:
                return
            self.indices += batch.indices.tolist()[:left]
            yield batch.images[:left], batch.labels[:left]

    def images(self) -> Iterator[Float[Tensor, "_ channels height width"]]:
        """Images alone."""
        for images, _ in self.labeled():
            yield images


def masks_and_pixels(
    analyzed: AnalyzedModel, dataset: ImageDataset, indices: Iterable[int]
) -> Iterator[tuple[UInt8[Tensor, "1 height width"], UInt8[Tensor, "1 channels height width"]]]:
    """Mask and pixels of each numbered image as the model reads it; stops at the first that has no mask."""
    for _, sample in readable_samples(dataset, indices):
        if sample.mask is None:
            return
        yield analyzed.resize_mask(sample.mask)[None], analyzed.pixels(sample.image)[None]


def stack_images(analyzed: AnalyzedModel, pictures: NamedImages) -> Float[Tensor, "images channels height width"]:
    """All pictures as the model reads them."""
    return torch.stack([analyzed.preprocess(image) for image in pictures.images.values()])
