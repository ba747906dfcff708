"""COCO files: drawn scenes written and read again, the forms of masks, crowd, empty and damaged images."""

import json
import re

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mambar.data import open_dataset
from mambar.data.detection.coco_export import write_coco
from mambar.data.detection.object_masks import compressed_masks, decoded_masks, run_lengths, target_objects
from mambar.data.transforms.classification import to_pil_image
from mambar.errors import DataError, ImageError

POLYGON = [[2.0, 1.0, 8.0, 1.0, 8.0, 6.0, 2.0, 6.0]]


def shapes(split, **options):
    return open_dataset("shapes", split, kind="detection", img_size=32, num_classes=3, num_images=4, **options)


def write(root, annotations, *, images=(("a.png", 12, 10), ("b.png", 12, 10)), folder="val2017", **changes):
    """Two plain images of 12 x 10 pixels and an annotation file."""
    content = {
        "images": [{"id": 7 + n, "file_name": f, "width": w, "height": h} for n, (f, w, h) in enumerate(images)],
        "categories": [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": annotations and [{"id": n, "iscrowd": 0, **each} for n, each in enumerate(annotations, 1)],
        **changes,
    }
    for name, *_ in images:
        (root / folder).mkdir(parents=True, exist_ok=True)
        to_pil_image(torch.full((3, 10, 12), 90, dtype=torch.uint8)).save(root / folder / name)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content), "utf-8")
    return root


def box(image_id=7, category_id=9, bbox=(2, 1, 6, 5), **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "area": 30, **more}


@pytest.mark.parametrize("height", [1, 7])
def test_run_lengths_are_those_of_pycocotools(height):
    for seed in range(6):
        mask = np.random.default_rng(seed).random((height, 5)) < (0.0, 1.0, 0.5)[seed % 3]
        assert (decoded_masks([run_lengths(mask)], height, 5)[0].numpy() == mask).all()
        (mine,) = compressed_masks([run_lengths(mask)], height, 5)
        assert mine["counts"] == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def test_objects_of_scenes_are_what_is_visible():
    dataset = shapes("train", objects=(3, 3))
    plain = open_dataset("shapes", "train", img_size=32, num_classes=3, objects=(3, 3))
    for index in range(4):
        sample = dataset[index]
        masks = decoded_masks(sample.targets["segmentations"], 32, 32)
        assert torch.equal(sample.image, plain[index].image) and int(masks.sum(0).max()) == 1
        labels = sample.targets["box_labels"]
        assert torch.equal((masks * (labels[:, None, None] + 1)).sum(0).byte(), plain[index].mask)
        for mask, (_, (x0, y0, x1, y1), area, crowd, _) in zip(masks, target_objects(sample.targets), strict=True):
            inside = mask[int(y0) : int(y1), int(x0) : int(x1)]
            assert int(inside.sum()) == int(mask.sum()) == area and not crowd
            assert inside.any(0)[[0, -1]].all() and inside.any(1)[[0, -1]].all()


def test_written_scenes_are_read_as_they_are(tmp_path):
    for split in ("train", "val"):
        assert write_coco(shapes(split), tmp_path / "coco", split) == 4
    read = open_dataset(tmp_path / "coco", "val", kind="detection")
    given = shapes("val")
    assert read.classes == given.classes and len(read) == 4 and len(read.fingerprint()) == 64
    for index in range(4):
        mine, other = read[index], given[index]
        assert torch.equal(mine.image, other.image)
        for name, value in other.targets.items():
            found = mine.targets[name]
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def test_polygons_crowd_and_images_without_objects(tmp_path):
    runs = {"size": [10, 12], "counts": [0, 20, 100]}
    (packed,) = compressed_masks([runs], 10, 12)
    packed = {**packed, "counts": packed["counts"].decode()}
    objects = [
        box(segmentation=POLYGON),
        box(segmentation=runs, iscrowd=1),
        box(category_id=3, segmentation=packed),
        box(bbox=(1, 1, 0, 4), segmentation=POLYGON),
    ]
    dataset = open_dataset(write(tmp_path, objects), "val", kind="detection")
    # In the order of the ids.
    assert dataset.classes == ("dog", "cat") and len(dataset) == 2
    first, second = dataset[0].targets, dataset[1].targets
    assert first["box_labels"].tolist() == [1, 1, 0] and first["crowd"].tolist() == [False, True, False]
    assert first["boxes"][0].tolist() == [2, 1, 8, 6] and second["boxes"].shape == (0, 4)
    masks = decoded_masks(first["segmentations"], 10, 12)
    assert masks.sum((1, 2)).tolist() == [30, 20, 20] and masks[0, 1:6, 2:8].all()
    assert decoded_masks(second["segmentations"], 10, 12).shape == (0, 10, 12)


def test_other_places_of_the_files(tmp_path):
    write(tmp_path / "a", [box()], folder="images")
    assert len(open_dataset(tmp_path / "a", "val", kind="detection")) == 2
    write(tmp_path / "b" / "inner", [box()], folder="valid")
    (tmp_path / "b/inner/annotations/instances_val2017.json").rename(tmp_path / "b/inner/valid/_annotations.coco.json")
    (tmp_path / "b/inner/annotations").rmdir()
    dataset = open_dataset(tmp_path / "b", "val", kind="detection")
    assert dataset[0].targets["boxes"].tolist() == [[2, 1, 8, 6]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"id": 1}]}, "KeyError: 'bbox'"),
        ({"annotations": [box(image_id=99)]}, "KeyError: 99"),
        ({"annotations": [box(category_id=99)]}, "KeyError: 99"),
        ({"annotations": [box(bbox=(0, 0, float("inf"), 4))]}, "not finite"),
        ({"categories": 3}, "TypeError"),
        ({"images": []}, "lists no images"),
        ({"annotations": []}, "lists no objects"),
    ],
)
def test_damaged_annotations_are_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        open_dataset(write(tmp_path, **{"annotations": [], **changes}), "val", kind="detection")
    assert "\n" not in str(caught.value)


def test_missing_and_ambiguous_files_and_damaged_images(tmp_path, caplog):
    root = write(tmp_path, [box(segmentation=POLYGON), box(8)], images=(("a.png", 12, 10), ("b.png", 99, 10)))
    with pytest.raises(DataError, match="has 0 COCO files for train"):
        open_dataset(root, "train", kind="detection")
    dataset = open_dataset(root, "val", kind="detection")
    with pytest.raises(ImageError, match="12x10 pixels, its annotation says 99x10"):
        dataset[1]
    assert dataset.unreadable.count == 1 and "skipped an unreadable image" in caplog.text
    with pytest.raises(DataError, match="has a box but no mask"):
        compressed_masks([None], 10, 12)
    bad = ({"counts": 3}, {"size": [3, 3], "counts": [9]}, {"size": [10, 12], "counts": [9]}, [[1, 2, 3, 4]], 3)
    for each in (*bad, [[1, 2, 3, 4, 5, float("nan")]]):
        with pytest.raises(ImageError, match="neither polygons nor run lengths of 12x10 pixels"):
            compressed_masks([each], 10, 12)
    (root / "annotations/instances_val2014.json").write_text("{}", "utf-8")
    with pytest.raises(DataError, match="2 COCO files for val: "):
        open_dataset(root, "val", kind="detection")


@pytest.mark.parametrize("convert", [torch.tensor, np.array, list])
def test_boxes_are_tensors_arrays_or_lists(convert):
    targets = {"boxes": convert([[1, 2, 4, 6]]), "box_labels": convert([1])}
    (found,) = target_objects(targets)
    assert (found.label, found.box, found.area, found.crowd) == (1, [1, 2, 4, 6], 12, False)
    assert target_objects({"boxes": convert([]), "box_labels": convert([])}) == []
    bad = ([[4, 2, 1, 6]], [[1, 2, 4]], [[1, 2, 4, float("nan")]], [1, 2, 4, 6], [[1, 2, 4, 6]] * 2)
    for boxes in bad:
        with pytest.raises(DataError, match=r"boxes=\[.*\] with 1 box_labels are no objects; give one label and"):
            target_objects({"boxes": convert(boxes), "box_labels": convert([1])})
    with pytest.raises(DataError, match="targets boxes and box_labels"):
        target_objects({"boxes": convert([[1, 2, 4, 6]])})


def test_a_folder_of_classes_is_refused_with_both_layouts(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"put them into images/train .* annotations/instances_train.json \(COCO\)"):
        open_dataset(tmp_path, "train", kind="detection")


def test_regions_of_masks_are_objects(tmp_path):
    mask = torch.zeros(40, 40, dtype=torch.uint8)
    mask[2:10, 3:9], mask[20:30, 20:30], mask[35, 35] = 1, 1, 1
    mask[20:24, 2:6], mask[30:, :10] = 2, 255
    for folder, pixels in (("images", torch.zeros(3, 40, 40, dtype=torch.uint8)), ("masks", mask[None])):
        for split in ("train", "val"):
            (tmp_path / folder / split).mkdir(parents=True)
            to_pil_image(pixels).save(tmp_path / folder / split / "0.png")
    (tmp_path / "classes.txt").write_text("floor\ncat\ndog\n", "utf-8")
    dataset = open_dataset(tmp_path, "val", kind="detection")
    targets = dataset[0].targets
    assert dataset.classes == ("cat", "dog") and targets["box_labels"].tolist() == [0, 0, 1]
    assert targets["boxes"].tolist() == [[3, 2, 9, 10], [20, 20, 30, 30], [2, 20, 6, 24]]
    assert targets["areas"].tolist() == [48, 100, 16]
