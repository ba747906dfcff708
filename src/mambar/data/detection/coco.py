"""Images with COCO annotations: `annotations/instances_SPLIT*.json`, or `SPLIT/_annotations.coco.json`.

The images are in a folder of the split's name (`train2017/`), in `images/`, or where `file_name` says. Boxes are (x, y,
width, height) there, (x0, y0, x1, y1) here. Images without an object are part of the data. Boxes without an area are
left out. Annotations count the pixels as stored: the EXIF orientation is not applied.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64

from mambar.data.dataset import SPLIT_NAMES, Sample, check_split
from mambar.data.detection.object_masks import TargetObject, check_segmentation, object_targets
from mambar.data.loading.file_tree import Directory, folders_in
from mambar.data.loading.images import read_image
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.data.names import PackedNames
from mambar.errors import DataError, ImageError
from mambar.image_file import MAX_PIXELS
from mambar.messages import one_line

FOLDER: Final = "annotations"
_PREFIX, _ROBOFLOW = "instances_", "_annotations.coco.json"


def is_coco(path: Path) -> bool:
    """True if the folder has COCO annotations."""
    return path.is_dir() and any(_annotation_files(_inside(path), split) for split in SPLIT_NAMES)


class CocoImages(SkippingDataset):
    """A split of a folder with COCO annotations; classes are the categories in the order of their ids.

    Segmentations are kept as text and parsed when an image is read, since workers copy the memory of Python objects.
    """

    def __init__(self, root: Path | str, *, split: str, max_pixels: int = MAX_PIXELS) -> None:
        check_split(split, "COCO data")
        self.tree = _inside(Path(root).expanduser())
        self.name, self.max_pixels = Path(root).name or str(root), max_pixels
        files = _annotation_files(self.tree, split)
        if len(files) != 1:
            found = f"{', '.join(files)}; keep one" if files else f"none; give {FOLDER}/{_PREFIX}{split}.json"
            raise DataError(f"data={root} has {len(files)} COCO files for {split}: {found}.")
        source = f"{self.tree.name}/{files[0]}"
        try:
            # Not FileTree.read, whose limit is for images: the file of COCO 2017 has 470 MB.
            self._read_annotations(json.loads((self.tree.root / files[0]).read_bytes()))
        except OSError as error:
            raise DataError(f"{source} cannot be read: {one_line(error.strerror)}.") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise DataError(f"{source} is not a COCO file of objects ({reason}); check it.") from error
        stem = Path(files[0]).stem.removeprefix(_PREFIX)
        folders = (f"{stem}/", "images/", "", f"images/{stem}/", f"{Path(files[0]).parent}/")
        self._folder = next((each for each in folders if self.tree.has_file(each + self._paths[0])), folders[0])
        super().__init__(self._first_labels(), split, source=self.tree.name)

    def fingerprint(self) -> str:
        """sha256 of classes, file names and annotations; image files are not read."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for array in (self._paths.text, self._sizes, self._ends, self._numbers, self._segmentations.text):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _read_annotations(self, content: Mapping[str, Any]) -> None:
        categories = sorted(content["categories"], key=lambda each: each["id"])
        labels = {each["id"]: label for label, each in enumerate(categories)}
        self.classes = tuple(str(each["name"]) for each in categories)
        if not content["images"] or not self.classes:
            raise ValueError("it lists no images or no categories")
        objects: dict[int, list[Mapping[str, Any]]] = {each["id"]: [] for each in content["images"]}
        for each in content["annotations"]:
            if min(each["bbox"][2:]) > 0:
                objects[each["image_id"]].append(each)
        images = sorted(content["images"], key=lambda each: each["id"])
        ordered = [each for image in images for each in objects[image["id"]]]
        if not ordered:
            raise ValueError("it lists no objects")
        self._paths = PackedNames.from_names(str(each["file_name"]) for each in images)
        self._sizes = np.array([(each["height"], each["width"]) for each in images], dtype=np.int64)
        self._ends = np.cumsum([len(objects[each["id"]]) for each in images])
        self._numbers = _rows(ordered, labels)
        self._segmentations = PackedNames.from_names(json.dumps(each.get("segmentation") or None) for each in ordered)

    def _own(self, index: int) -> range:
        return range(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))

    def _first_labels(self) -> np.ndarray:
        """The class of each image's first object, by which an unreadable image is replaced; 0 without an object."""
        owned = (self._own(index) for index in range(len(self._ends)))
        return np.array([int(self._numbers[own.start, 0]) if own else 0 for own in owned], dtype=np.int64)

    def _read(self, index: int) -> Sample:
        path = self._folder + self._paths[index]
        name = f"{self.tree.name}/{path}"
        data = self.tree.read(path)
        image = read_image(data, name=name, apply_exif_orientation=False, max_pixels=self.max_pixels)
        if list(image.shape[1:]) != self._sizes[index].tolist():
            height, width = self._sizes[index]
            raise ImageError(
                f"{one_line(name)} has {image.shape[2]}x{image.shape[1]} pixels, its annotation says {width}x{height}."
            )
        objects = [
            TargetObject(int(label), box, area, bool(crowd), json.loads(self._segmentations[number]))
            for number, (label, *box, area, crowd) in zip(
                self._own(index), self._numbers[self._own(index)].tolist(), strict=True
            )
        ]
        for each in objects:
            if each.segmentation is not None:
                check_segmentation(each.segmentation, *self._sizes[index].tolist())
        return Sample(image, int(self.labels[index]), targets=object_targets(objects))


def _rows(objects: list[Mapping[str, Any]], labels: Mapping[int, int]) -> Float64[np.ndarray, "objects 7"]:
    """Class, box (4), area and crowd of each object."""
    rows = []
    for each in objects:
        x, y, width, height = (float(number) for number in each["bbox"])
        area = float(each.get("area", width * height))
        rows.append((labels[each["category_id"]], x, y, x + width, y + height, area, each.get("iscrowd", 0)))
    found = np.array(rows, dtype=np.float64).reshape(-1, 7)
    if not np.isfinite(found).all():
        raise ValueError("a box or an area is not finite")
    return found


def _inside(root: Path) -> Directory:
    """The folder, or its only sub-folder, as in unpacked archives."""
    folders = folders_in(root)
    has_own = FOLDER in folders or any((root / each / _ROBOFLOW).is_file() for each in folders)
    return Directory(root if has_own or len(folders) != 1 else root / folders[0])


def _annotation_files(tree: Directory, split: str) -> list[str]:
    """The annotation files of a split by the most preferred of its names; several if they differ in the year."""
    listed = [name for name in tree.files(FOLDER) if name.startswith(_PREFIX) and name.endswith(".json")]
    for each in SPLIT_NAMES[split]:
        stems = {name: name.removeprefix(_PREFIX).removesuffix(".json").rstrip("0123456789") for name in listed}
        files = [f"{FOLDER}/{name}" for name, stem in stems.items() if stem == each]
        if tree.has_file(f"{each}/{_ROBOFLOW}"):
            files.append(f"{each}/{_ROBOFLOW}")
        if files:
            return files
    return []
