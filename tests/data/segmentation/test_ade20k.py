"""ADE20K in both released layouts, from folders and from the archive, and shapes written in its layout."""

import json
import zipfile

import numpy as np
import pytest
import torch

from data.segmented import image, png, values, write
from mambar.data.registry import open_dataset
from mambar.data.segmentation.ade20k_classes import CLASSES, FULL_NAMES, OTHER_NAMES
from mambar.data.segmentation.masks import IGNORE
from mambar.errors import DataError, ImageError
from scene_parse import write_scene_parse

ROOT = "ADEChallengeData2016"


def scene_parse():
    files = {f"{ROOT}/objectInfo150.txt": "Idx\tName\n", f"{ROOT}/sceneCategories.txt": "x\n"}
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for number in range(1, count + 1):
            name = f"ADE_{short}_{number:08d}"
            files[f"{ROOT}/images/{split}/{name}.jpg"] = image(number)
            files[f"{ROOT}/annotations/{split}/{name}.png"] = png(values(number, high=151))
    return files


@pytest.mark.parametrize("packed", [False, True])
def test_scene_parse(tmp_path, packed):
    data = tmp_path / f"{ROOT}.zip" if packed else tmp_path / "data"
    if packed:
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in scene_parse().items():
                archive.writestr(name, content)
    else:
        write(data, scene_parse())
    train, val = (open_dataset(data, split, kind="segmentation") for split in ("train", "val"))
    assert (len(train), len(val)) == (3, 2) and train.classes == CLASSES
    stored = values(1, high=151)
    expected = np.where(stored == 0, IGNORE, stored - 1)
    assert np.array_equal(train[0].mask.numpy(), expected)
    assert train[0].image.shape == (3, 12, 16)


def test_class_list():
    assert len(CLASSES) == 150 and len(set(CLASSES)) == 150
    assert CLASSES[:3] == ("wall", "building", "sky") and CLASSES[12] == "person" and CLASSES[-1] == "flag"
    assert OTHER_NAMES["double door"] == CLASSES.index("door") and "screen" not in OTHER_NAMES
    assert FULL_NAMES["screen, silver screen, projection screen"] == CLASSES.index("screen")


def full(names_in):
    """One image of each split: class 300 (wall), 7 (a class that is none of the 150), 2836 (traffic light)."""
    numbers = np.zeros((12, 16), dtype=np.int64)
    numbers[:4], numbers[4:8], numbers[8:10] = 300, 7, 2836
    stored = np.zeros((12, 16, 3), dtype=np.uint8)
    stored[..., 0], stored[..., 1] = numbers // 256 * 10, numbers % 256
    stored[:4, :, 2], stored[4:8, :, 2], stored[8:10, :, 2] = 40, 90, 200
    named = [(300, "wall"), (7, "airbag"), (2836, "traffic light, traffic signal, stoplight")]
    files = {}
    for split, short in (("training", "train"), ("validation", "val")):
        stem = f"ADE20K_2021/images/ADE/{split}/urban/street/ADE_{short}_00000001"
        files |= {f"{stem}.jpg": image(), f"{stem}_seg.png": png(stored), f"{stem}_parts_1.png": png(stored)}
        if names_in == "json":
            objects = [{"id": n, "name": name, "name_ndx": number} for n, (number, name) in enumerate(named)]
            files[f"{stem}.json"] = json.dumps({"annotation": {"object": objects}})
        elif names_in == "atr":
            lines = [f'{n + 1:03d} # 0 # 0 # {name} # raw # ""' for n, (_, name) in enumerate(named)]
            files[f"{stem}_atr.txt"] = "\n".join([*lines, '001 # 1 # 0 # door # door # ""'])
    return files


@pytest.mark.parametrize("names_in", ["json", "atr"])
def test_full_archive_is_mapped_to_the_150_classes(tmp_path, names_in):
    found = open_dataset(write(tmp_path, full(names_in)), "val", kind="segmentation")
    assert found.classes == CLASSES and len(found) == 1
    rows = found[0].mask[:, 0].tolist()
    assert rows == [0] * 4 + [IGNORE] * 4 + [CLASSES.index("traffic light")] * 2 + [IGNORE] * 2


@pytest.mark.rel
@pytest.mark.parametrize("text", [None, "[]", "{", '{"annotation": {"object": [{}]}}', "[" * 100_000])
def test_full_archive_without_good_names(tmp_path, text):
    files = full("json" if text is not None else "none")
    files = {name: text if name.endswith("json") else data for name, data in files.items()}
    val = open_dataset(write(tmp_path, files), "val", kind="segmentation")
    with pytest.raises(ImageError, match=r"neither a .json nor|is not an ADE20K annotation"):
        val[0]


def test_shapes_in_the_layout_come_back_as_they_were(tmp_path):
    for split in ("train", "val"):
        write_scene_parse(open_dataset("shapes", split, kind="segmentation", img_size=24), tmp_path, split, limit=3)
    for split in ("train", "val"):
        there = open_dataset("shapes", split, kind="segmentation", img_size=24)
        back = open_dataset(tmp_path, split, kind="segmentation")
        assert len(back) == 3 and back.classes == there.classes
        for index in range(3):
            assert torch.equal(back[index].image, there[index].image)
            assert torch.equal(back[index].mask, there[index].mask)
    with pytest.raises(FileExistsError):
        write_scene_parse(open_dataset("shapes", "val", kind="segmentation", img_size=24), tmp_path, "val", limit=1)
    with pytest.raises(DataError, match="names other classes"):
        write_scene_parse(open_dataset("mosaics", "val", kind="segmentation", img_size=24), tmp_path, "val", limit=1)
