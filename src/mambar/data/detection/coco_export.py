"""Writes a detection dataset in COCO's format, for other tools."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mambar.data.dataset import ImageDataset
from mambar.data.detection.coco import FOLDER
from mambar.data.detection.object_masks import target_objects
from mambar.data.loading.unreadable_images import readable_samples
from mambar.data.transforms.classification import to_pil_image
from mambar.errors import DataError, DiskError


def write_coco(
    dataset: ImageDataset, out: Path, split: str, *, progress: Callable[[str], None] = lambda text: None
) -> int:
    """Writes the images as PNG to `out`/`split`, and `out`/annotations/instances_`split`.json; returns their number.

    Images that cannot be read are left out. Masks are written as they are in the data: drawn masks as run lengths.
    """
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": label, "name": name} for label, name in enumerate(dataset.classes, 1)],
    }
    file = out / FOLDER / f"instances_{split}.json"
    try:
        for folder in (out / split, file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        for index, sample in readable_samples(dataset, range(len(dataset))):
            if "boxes" not in sample.targets:
                raise DataError(f"sample {index} of {dataset.name} has no boxes; give data of objects.")
            name = f"{index:06d}.png"
            to_pil_image(sample.image).save(out / split / name)
            height, width = sample.image.shape[1:]
            content["images"].append({"id": index, "file_name": name, "height": height, "width": width})
            for each in target_objects(sample.targets):
                x0, y0, x1, y1 = each.box
                content["annotations"].append(
                    {
                        # COCO's evaluation takes an id of 0 for no match.
                        "id": len(content["annotations"]) + 1,
                        "image_id": index,
                        "category_id": each.label + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": each.area,
                        "iscrowd": int(each.crowd),
                        **({} if each.segmentation is None else {"segmentation": each.segmentation}),
                    }
                )
            if index % 500 == 499:
                progress(f"{split}: {index + 1:,} of {len(dataset):,} images")
        file.write_text(json.dumps(content), "utf-8")
    except OSError as error:
        raise DiskError(f"{error.filename or out} could not be written: {error.strerror or error}.") from error
    return len(content["images"])
