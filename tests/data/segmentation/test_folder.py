"""The user's images and masks in the layouts people have, and what is said where something is wrong."""

import logging

import numpy as np
import pytest
import torch

from data.segmented import image, png, values, write
from mambar.data.registry import open_dataset, open_evaluation_dataset
from mambar.data.segmentation.folder import parse_class_lines
from mambar.data.segmentation.masks import IGNORE
from mambar.errors import DataError, ImageError

NAMES = "sky\nroad\ntree\n"


def pairs(images, masks, count=4, start=0, ending=""):
    files = {}
    for index in range(start, start + count):
        files[f"{images}/{index:02d}.jpg"] = image(index)
        files[f"{masks}/{index:02d}{ending}.png"] = png(values(index))
    return files


@pytest.mark.parametrize(
    ("train", "val", "extra"),
    [
        (("images/train", "masks/train"), ("images/val", "masks/val"), {}),
        (("train/images", "train/masks"), ("val/images", "val/masks"), {}),
        (("img/training", "labels/training"), ("img/validation", "labels/validation"), {}),
        (("Images/Train", "Masks/Train"), ("Images/Test", "Masks/Test"), {}),
        (("Training/img", "Training/gt"), ("Testing/img", "Testing/gt"), {}),
        (
            ("images", "masks"),
            ("images", "masks"),
            {"train.txt": "00\n01\n02\n03\n", "val.txt": "10.jpg\n11\n12\n13\n"},
        ),
        (
            ("images", "masks"),
            ("images", "masks"),
            {
                "train.txt": "images\\00.jpg\n./images/01\n/home/me/images/02.JPG\n03.png\n",
                "valid.txt": "images/10.jpg masks/10_mask.png\n11.jpg,11_mask.png\n12.jpg;x\n13\t1\n",
            },
        ),
    ],
)
def test_layouts(tmp_path, train, val, extra):
    write(tmp_path, {**pairs(*train), **pairs(*val, start=10, ending="_mask"), "classes.txt": NAMES, **extra})
    for split, first in (("train", 0), ("val", 10)):
        found = open_dataset(tmp_path, split, kind="segmentation")
        assert len(found) == 4 and found.classes == ("sky", "road", "tree") and len(found.palette) == 3
        for index in range(4):
            assert found[index].image.shape == (3, 12, 16)
            assert np.array_equal(found[index].mask.numpy(), values(first + index))


def test_without_a_split_a_part_is_held_out(tmp_path):
    write(tmp_path, {**pairs("images", "masks", count=10), "classes.txt": NAMES})
    train, val = (open_dataset(tmp_path, split, kind="segmentation") for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 2)
    assert not set(train.images) & set(val.images)
    again = open_dataset(tmp_path, "val", kind="segmentation")
    assert list(again.images) == list(val.images) and again.fingerprint() == val.fingerprint() != train.fingerprint()
    assert len(open_dataset(tmp_path, "val", kind="segmentation", val_fraction=0.5)) == 5
    assert len(open_dataset(tmp_path, "train", kind="segmentation", limit=3)) == 3
    assert len(open_evaluation_dataset(tmp_path, kind="segmentation")) == 10
    assert list(open_evaluation_dataset(tmp_path, "val", kind="segmentation").images) == list(val.images)


@pytest.mark.parametrize("inside", ["val", "test"])
def test_a_validation_split_alone_can_be_evaluated(tmp_path, inside):
    write(tmp_path, {**pairs(f"images/{inside}", f"masks/{inside}"), "classes.txt": NAMES})
    assert len(open_evaluation_dataset(tmp_path, kind="segmentation")) == 4


def test_colors_from_the_class_file(tmp_path):
    colors = np.array([[[0, 0, 255], [9, 9, 9]], [[0, 128, 0], [0, 0, 255]]], dtype=np.uint8)
    files = {f"images/{split}/a.jpg": image(size=(2, 2)) for split in ("train", "val")}
    files |= {f"masks/{split}/a.png": png(colors) for split in ("train", "val")}
    write(tmp_path, {**files, "classes.txt": "sky #0000ff\n9 9 9 void\ntree 0 128 0\n"})
    found = open_dataset(tmp_path, "train", kind="segmentation")
    assert found.classes == ("sky", "tree") and found.palette == ((0, 0, 255), (0, 128, 0))
    assert found[0].mask.tolist() == [[0, IGNORE], [1, 0]]


def test_found_classes(tmp_path):
    write(tmp_path, pairs("images/train", "masks/train") | pairs("images/val", "masks/val", start=5))
    write(tmp_path, {"masks/train/00.png": png(np.full((12, 16), 7))})
    # Without a file of names, classes are found by default.
    found = open_dataset(tmp_path, "train", kind="segmentation")
    assert found.classes == ("class 0", "class 1", "class 2", "class 7")
    assert found[0].mask.unique().tolist() == [3]
    assert open_dataset(tmp_path, "val", kind="segmentation", classes="found").classes == found.classes


def test_found_colors(tmp_path):
    two = np.zeros((12, 16, 3), dtype=np.uint8)
    two[:6] = (200, 10, 0)
    write(
        tmp_path, {"images/a.jpg": image(), "images/b.jpg": image(1), "masks/a.png": png(two), "masks/b.png": png(two)}
    )
    found = open_dataset(tmp_path, "train", kind="segmentation", classes="found")
    assert found.classes == ("#000000", "#c80a00") and found.palette[1] == (200, 10, 0)


def test_binary_masks_of_0_and_255(tmp_path, caplog):
    files = pairs("images/train", "masks/train") | pairs("images/val", "masks/val")
    files = {name: png(values(1, high=2) * 255) if "masks" in name else data for name, data in files.items()}
    write(tmp_path, {**files, "classes.txt": "rest\nroad\n"})
    with caplog.at_level(logging.INFO, "mambar.data"):
        found = open_dataset(tmp_path, "train", kind="segmentation")
    assert found[0].mask.unique().tolist() == [0, 1] and "255 is read as 'road'" in caplog.text


def test_found_classes_of_0_and_255(tmp_path):
    files = {f"images/{number}.jpg": image() for number in range(3)}
    files |= {f"masks/{number}.png": png(255 * (values(number) > 1)) for number in range(3)}
    found = open_dataset(write(tmp_path, files), "train", kind="segmentation")
    assert found.classes == ("class 0", "class 255") and found[0].mask.unique().tolist() == [0, 1]


def test_image_turned_by_exif_meets_its_mask(tmp_path):
    from PIL import Image

    from data.pictures import encoded, photo

    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(photo(12, 16), exif=exif)
    files = pairs("images/train", "masks/train") | pairs("images/val", "masks/val")
    # Drawn on the upright picture, and drawn on the pixels as stored.
    files |= {"images/train/00.jpg": turned, "masks/train/00.png": png(values(size=(16, 12)))}
    files |= {"images/train/01.jpg": turned, "masks/train/01.png": png(values(size=(12, 16)))}
    found = open_dataset(write(tmp_path, {**files, "classes.txt": NAMES}), "train", kind="segmentation")
    assert found[0].image.shape == (3, 16, 12) and found[1].image.shape == (3, 12, 16)
    assert torch.equal(found[0].image, found[1].image.rot90(-1, (1, 2)))


BAD = {
    "another size": ({"masks/{}/00.png": png(values(size=(12, 15)))}, "16x12 pixels, its mask .* 15x12"),
    "unknown value": ({"masks/{}/00.png": png(np.full((12, 16), 9))}, "holds the value 9; known are 0-2, 255"),
    "no mask": ({"masks/{}/00.png": None}, "has no mask; add one"),
    "no PNG": ({"masks/{}/00.png": image()}, "cannot be read as a PNG"),
    "empty image": ({"images/{}/00.jpg": b""}, "is empty"),
}


@pytest.mark.rel
@pytest.mark.parametrize("kind", BAD)
def test_bad_pairs_are_counted_and_named_once(tmp_path, caplog, kind):
    changed, message = BAD[kind]
    files = pairs("images/train", "masks/train", 20) | pairs("images/val", "masks/val", 20)
    for split in ("train", "val"):
        files |= {name.format(split): data for name, data in changed.items()}
    write(tmp_path, {**{name: data for name, data in files.items() if data is not None}, "classes.txt": NAMES})
    train, val = (open_dataset(tmp_path, split, kind="segmentation") for split in ("train", "val"))
    with caplog.at_level(logging.WARNING, "mambar.data"):
        stand_in = train[0]
        assert torch.equal(train[0].mask, stand_in.mask)
        with pytest.raises(ImageError, match=message):
            val[0]
    assert torch.equal(stand_in.mask, train[1].mask)
    assert train.unreadable.count == val.unreadable.count == 1
    assert len(caplog.records) == 2


@pytest.mark.rel
def test_too_many_bad_pairs_end_the_run(tmp_path):
    files = pairs("images/train", "masks/train", 20) | {"masks/val/x.png": png(values()), "images/val/x.jpg": image()}
    wrong = {name: png(np.full((12, 16), 9)) for name in files if name.startswith("masks/train")}
    train = open_dataset(write(tmp_path, {**files, **wrong, "classes.txt": NAMES}), "train", kind="segmentation")
    with pytest.raises(DataError, match="of the 20 images"):
        train[0]


@pytest.mark.rel
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (pairs("images/train", "masks/train") | {"classes.txt": NAMES}, "has no images/val; add it with masks/val"),
        (pairs("images/train", "x"), "has no folders of images and masks"),
        (
            {"images/train/a.jpg": image(), "masks/train/b.png": png(values()), "classes.txt": NAMES},
            "has 1 images for train, but no masks of them",
        ),
        ({"images/a.jpg": image(), "masks/a.png": png(values())}, "one image cannot be split"),
        ({"images/a.txt": "x", "masks/a.png": png(values())}, "has no images"),
        ({"a.jpg": image()}, "has no folders of images and masks"),
        (pairs("images", "masks") | {"classes.txt": ""}, "has no class names"),
        (pairs("images", "masks") | {"classes.txt": "a #ff0000\nb\n"}, "gives colors to some classes, but none to 'b'"),
        (pairs("images", "masks") | {"classes.txt": "a #ff0000\nb #ff0000\n"}, "two classes have the color #ff0000"),
        (pairs("images", "masks") | {"classes.txt": "a\na\n"}, "appears twice"),
        (pairs("images", "masks") | {"classes.txt": "1 2 300 a\n"}, "a color above 255"),
        (pairs("images", "masks"), "has no classes.txt; its masks hold 0, 1, 2: write one class name per line"),
    ],
)
def test_wrong_layouts_are_one_line(tmp_path, files, message):
    options = {"classes": "classes.txt"} if "classes.txt;" in message else {}
    with pytest.raises(DataError, match=message) as caught:
        for split in ("train", "val"):
            open_dataset(write(tmp_path, files), split, kind="segmentation", **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_palette_without_names(tmp_path):
    colors = np.zeros((12, 16, 3), dtype=np.uint8)
    write(tmp_path, {f"images/{n}.jpg": image(n) for n in range(3)} | {f"masks/{n}.png": png(colors) for n in range(3)})
    with pytest.raises(DataError, match=r"masks hold #000000: write a line NAME #rrggbb for each"):
        open_dataset(tmp_path, "train", kind="segmentation", classes="classes.txt")


def test_photographs_as_masks(tmp_path):
    from data.pictures import encoded, photo

    masks = {f"masks/{n}.png": encoded(photo(40, 40, seed=n), "PNG") for n in range(3)}
    write(tmp_path, {f"images/{n}.jpg": image(n) for n in range(3)} | masks)
    with pytest.raises(DataError, match="more than 255 different colors"):
        open_dataset(tmp_path, "train", kind="segmentation")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("mosaics", {"img_size": 500}, "img_size=500"),
        ("mosaics", {"cell": 3}, "did you mean 'cells'"),
        ("shapes", {"objects": "x"}, "cannot be made with|objects="),
        ("nowhere", {}, "does not exist"),
    ],
)
def test_bad_options(data, options, message):
    with pytest.raises(DataError, match=message):
        open_dataset(data, "train", kind="segmentation", **options)


def test_unknown_split_and_limit():
    with pytest.raises(DataError, match="split='test' is not there: data=mosaics has train and val"):
        open_dataset("mosaics", "test", kind="segmentation")
    with pytest.raises(DataError, match="limit=0"):
        open_dataset("mosaics", "train", kind="segmentation", limit=0)


@pytest.mark.wrong_shapes
def test_a_limit_that_is_no_number():
    with pytest.raises(DataError, match=r"^val_limit='x' is not a count"):
        open_dataset("mosaics", "val", kind="segmentation", val_limit="x")


def test_class_lines():
    text = "sky\n\n// a note\nold road #0a0B0c\n1, 2, 3 tree top\nriver 4 5 6\nlevel 3\n"
    assert parse_class_lines(text, source="f") == [
        ("sky", None),
        ("old road", (10, 11, 12)),
        ("tree top", (1, 2, 3)),
        ("river", (4, 5, 6)),
        ("level 3", None),
    ]


def test_one_class_name_for_masks_of_0_and_255_is_refused(tmp_path):
    files: dict[str, bytes | str] = {"classes.txt": "road\n"}
    for number in range(2):
        files |= {f"images/train/{number}.jpg": image(number), f"masks/train/{number}.png": png(255 * (values() > 1))}
    with pytest.raises(DataError, match="names one class, 'road', but masks hold 0 and 255; write background and road"):
        open_dataset(write(tmp_path, files), "train", kind="segmentation")


def test_a_dataset_one_level_too_high_is_found(tmp_path):
    files = pairs("street/images/train", "street/masks/train") | pairs("street/images/val", "street/masks/val", 2)
    write(tmp_path, {**files, "street/classes.txt": NAMES, "notes/x.txt": "x", "readme.md": "x"})
    assert [len(open_dataset(tmp_path, split, kind="segmentation")) for split in ("train", "val")] == [4, 2]


def test_what_lists_and_folders_leave_out_is_counted_and_named(tmp_path, caplog):
    files = pairs("images", "masks", 6) | {"images/a b.jpg": image(), "masks/ab.png": png(values(7))}
    files |= {"images/x.tif": b"x", "masks/00.jpg": b"x", "classes.txt": NAMES, "val.txt": "04\n05\n"}
    write(tmp_path, {**files, "train.txt": "00\n01\na b.jpg ab.png\ngone/02.png.bak\nnothing\n"})
    train = open_dataset(tmp_path, "train", kind="segmentation")
    assert list(train.images) == ["images/00.jpg", "images/01.jpg", "images/a b.jpg"]
    # The mask of a pair need not have the name of its image.
    assert np.array_equal(train[2].mask.numpy(), values(7))
    assert "train.txt: 2 of 5 names match no image, such as 'gone/02.png.bak'" in caplog.text
    assert "files that are not PNG, JPEG or WEBP are left out: 1 (1 .tif), such as 'x.tif'" in caplog.text
    assert "masks that are not PNG are left out: 1 (1 .jpg), such as '00.jpg'" in caplog.text
    caplog.clear()
    assert len(open_dataset(tmp_path, "val", kind="segmentation")) == 2 and not caplog.records


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train.txt": "a\nb\n", "val.txt": "00"}, "none of its 2 names is an image, such as 'a'; write names as '00"),
        ({"train.txt": "\n", "val.txt": "00"}, "train.txt lists no image"),
        ({"val.txt": "00"}, "has val.txt but no train.txt; add it, or remove val.txt"),
    ],
)
def test_lists_without_images_are_refused(tmp_path, lists, message):
    write(tmp_path, {**pairs("images", "masks"), "classes.txt": NAMES, **lists})
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path, "train", kind="segmentation")


def test_a_rare_object_of_255_is_found_in_any_mask(tmp_path):
    files = {f"images/{number:02d}.jpg": image() for number in range(42)}
    files |= {f"masks/{number:02d}.png": png(np.zeros((12, 16))) for number in range(42)}
    files["masks/41.png"] = png(255 * (values() > 1))
    found = open_dataset(write(tmp_path, {**files, "classes.txt": "rest\nroad\n"}), "train", kind="segmentation")
    assert found.table.values == {0: 0, 255: 1}


@pytest.mark.parametrize(("held", "options"), [(0, {}), (1, {}), (7, {"classes": "found"})])
def test_one_class_alone_is_refused(tmp_path, held, options):
    files = pairs("images", "masks") | {f"masks/{number:02d}.png": png(np.full((12, 16), held)) for number in range(4)}
    with pytest.raises(DataError, match="a segmenter needs two or more: name the background as well"):
        open_dataset(write(tmp_path, {**files, "classes.txt": "road\n"}), "train", kind="segmentation", **options)
