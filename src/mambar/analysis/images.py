"""Named images to analyze: files, the built-in photographs, or a part of a dataset."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.data import ImageDataset, Sample
from mambar.data.keys import key, permutation
from mambar.data.loading.images import read_image
from mambar.data.loading.unreadable_images import readable_samples
from mambar.data.synthetic.photographs import photographs
from mambar.errors import InputError
from mambar.image_file import IMAGE_SUFFIXES


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


def images_from_paths(paths: Sequence[str | Path], *, limit: int = 1000) -> NamedImages:
    """Image files, and the image files of folders without their sub-folders, sorted by name."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise InputError(
                    f"images={path} contains no image; use a folder with {', '.join(sorted(IMAGE_SUFFIXES))}."
                )
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"images={path} does not exist; use image files or a folder of them.")
    if not files:
        raise InputError("images= is empty; use image files or a folder of them.")
    return NamedImages(name="images given", images={file.name: read_image(file) for file in files[:limit]})


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
    """Mask and pixels of each numbered image after resize and crop; stops at the first image without a mask."""
    for _, sample in readable_samples(dataset, indices):
        if sample.mask is None:
            return
        yield analyzed.resize_mask(sample.mask)[None], analyzed.pixels(sample.image)[None]
