"""Writes a dataset as SceneParse150, to test the ADE20K code without ADE20K."""

from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from mambar.data.dataset import ImageDataset
from mambar.data.segmentation.folder import CLASS_FILE
from mambar.data.segmentation.masks import IGNORE
from mambar.errors import DataError


def write_scene_parse(dataset: ImageDataset, root: Path, split: str, *, limit: int | None = None) -> None:
    """Writes a dataset in the layout of SceneParse150, PNG images and masks, with its `classes.txt`.

    Existing files are not overwritten but raise an error.
    """
    folder = {"train": "training", "val": "validation"}[split]
    images, masks = root / "images" / folder, root / "annotations" / folder
    for place in (images, masks):
        place.mkdir(parents=True, exist_ok=True)
    names = root / CLASS_FILE
    text = "".join(f"{name}\n" for name in dataset.classes)
    if names.exists() and names.read_text("utf-8") != text:
        raise DataError(f"{names} names other classes; choose an empty folder.")
    names.write_text(text, "utf-8")
    for index in range(min(len(dataset), limit or len(dataset))):
        sample = dataset[index]
        if sample.mask is None:
            raise DataError(f"sample {index} of {dataset.name} has no mask.")
        name = f"{PurePosixPath(dataset.name).name}_{split}_{index:08d}.png"
        labels = sample.mask.numpy()
        stored = np.where(labels == IGNORE, 0, labels + 1).astype(np.uint8)
        for place, pixels in ((images, sample.image.permute(1, 2, 0).numpy()), (masks, stored)):
            with (place / name).open("xb") as file:
                Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
