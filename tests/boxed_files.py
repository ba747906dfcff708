"""Small copies of the layouts with boxes, Tiny-ImageNet and PASCAL VOC, with drawn images."""

from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01443537", "n02124075", "n07920052")
# Inclusive, as in the files of Tiny-ImageNet; one box for image 0 of a class, the other for image 1.
BOXES = ((8, 16, 39, 55), (24, 0, 63, 31))


def scene(box: tuple[int, int, int, int], color: int, size: int = 64) -> Image.Image:
    """A plain rectangle (inclusive box) on a plain background."""
    pixels = np.full((size, size, 3), 200, dtype=np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0 : y1 + 1, x0 : x1 + 1] = (20, 40 * color, 90)
    return Image.fromarray(pixels)


def write_tiny_imagenet(root: Path) -> Path:
    """`tiny-imagenet-200` with three classes of two images in each split."""
    folder = root / "tiny-imagenet-200"
    (folder / "val/images").mkdir(parents=True)
    annotations = []
    for label, wnid in enumerate(WNIDS):
        (folder / f"train/{wnid}/images").mkdir(parents=True)
        lines = []
        for number, box in enumerate(BOXES):
            text = "\t".join(map(str, box))
            scene(box, label).save(folder / f"train/{wnid}/images/{wnid}_{number}.JPEG", quality=95)
            lines.append(f"{wnid}_{number}.JPEG\t{text}")
            name = f"val_{2 * label + number}.JPEG"
            scene(box, label).save(folder / "val/images" / name, quality=95)
            annotations.append(f"{name}\t{wnid}\t{text}")
        (folder / f"train/{wnid}/{wnid}_boxes.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "val/val_annotations.txt").write_text("\n".join(annotations) + "\n", "utf-8")
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n", "utf-8")
    return folder


def voc_xml(objects: list[tuple[str, tuple[int, int, int, int], bool]]) -> str:
    """An annotation of VOC; boxes count from 1 and are inclusive."""
    parts = [
        f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box, difficult in objects
    ]
    return f"<annotation><size><width>64</width><height>64</height></size>{''.join(parts)}</annotation>"


def write_voc(root: Path) -> Path:
    """`VOCdevkit/VOC2007` with two images in each split; the second one of a split has two objects."""
    folder = root / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, names in {"train": ("000001", "000002"), "val": ("000003", "000004")}.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n", "utf-8")
        for number, name in enumerate(names):
            scene(BOXES[number], number).save(folder / f"JPEGImages/{name}.jpg", quality=95)
            x0, y0, x1, y1 = BOXES[number]
            objects = [("cat", (x0 + 1, y0 + 1, x1 + 1, y1 + 1), False)]
            if number:
                objects.append(("dog", (1, 33, 16, 48), True))
            (folder / f"Annotations/{name}.xml").write_text(voc_xml(objects), "utf-8")
    return root / "VOCdevkit"
