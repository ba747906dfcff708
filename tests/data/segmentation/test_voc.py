"""VOC's folders, and other classes in them."""

import numpy as np
import pytest

from data.segmented import image, png, values, write
from mambar.data.registry import open_dataset
from mambar.data.segmentation.masks import IGNORE
from mambar.data.segmentation.voc import VOC_CLASSES, voc_palette
from mambar.errors import DataError, ImageError


def voc(root, **more):
    files = {}
    for number in range(4):
        files[f"JPEGImages/2007_{number:06d}.jpg"] = image(number)
        files[f"SegmentationClass/2007_{number:06d}.png"] = png(values(number, high=21))
    files["ImageSets/Segmentation/train.txt"] = "2007_000000\n2007_000001\n2007_000002\n"
    files["ImageSets/Segmentation/val.txt"] = "2007_000003\n"
    return write(root, {**files, **more})


@pytest.mark.parametrize("place", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_listed_images(tmp_path, place):
    voc(tmp_path / place)
    train, val = (open_dataset(tmp_path, split, kind="segmentation") for split in ("train", "val"))
    assert (len(train), len(val)) == (3, 1)
    assert train.classes == VOC_CLASSES and train.palette == voc_palette(21)
    assert np.array_equal(val[0].mask.numpy(), values(3, high=21))


def test_border_is_ignored(tmp_path):
    voc(tmp_path, **{"SegmentationClass/2007_000003.png": png(np.full((12, 16), 255))})
    assert open_dataset(tmp_path, "val", kind="segmentation")[0].mask.unique().tolist() == [IGNORE]


def test_published_colors():
    """aeroplane, bicycle, …, tvmonitor as the development kit draws them."""
    colors = voc_palette(256)
    assert colors[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert colors[20] == (0, 64, 128) and colors[255] == (224, 224, 192)


def test_own_classes_from_a_labelmap(tmp_path):
    colored = np.zeros((12, 16, 3), dtype=np.uint8)
    colored[0], colored[1] = (250, 0, 0), (224, 224, 192)
    labelmap = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncell:250,0,0::\n"
    masks = {f"SegmentationClass/2007_{number:06d}.png": png(colored) for number in range(4)}
    found = open_dataset(voc(tmp_path, **masks, **{"labelmap.txt": labelmap}), "train", kind="segmentation")
    assert found.classes == ("background", "cell")
    assert found[0].mask[:3, 0].tolist() == [1, IGNORE, 0]


def test_own_classes_from_names(tmp_path):
    found = open_dataset(
        voc(tmp_path, **{"class_names.txt": "_background_\nx\n" + "y\n"}), "train", kind="segmentation"
    )
    assert found.classes == ("background", "x", "y")


def test_listed_but_missing(tmp_path):
    voc(tmp_path, **{"ImageSets/Segmentation/val.txt": "2007_000003\nnowhere\n"})
    val = open_dataset(tmp_path, "val", kind="segmentation")
    with pytest.raises(ImageError, match="nowhere"):
        val[1]


def test_lists_of_pairs_as_other_tools_write_them(tmp_path, caplog):
    pairs = "/JPEGImages/2007_000003.jpg /SegmentationClass/2007_000002.png\nJPEGImages\\2007_000001.jpg\n"
    voc(tmp_path, **{"ImageSets/Segmentation/val.txt": pairs})
    val = open_dataset(tmp_path, "val", kind="segmentation")
    assert list(val.images) == ["JPEGImages/2007_000003.jpg", "JPEGImages/2007_000001.jpg"] and not caplog.records
    assert np.array_equal(val[0].mask.numpy(), values(2, high=21))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ImageSets/Segmentation/val.txt": ""}, "lists no image"),
        ({"labelmap.txt": "nothing"}, "has no line name:r,g,b"),
    ],
)
def test_bad_layouts(tmp_path, more, message):
    with pytest.raises(DataError, match=message):
        open_dataset(voc(tmp_path, **more), "val", kind="segmentation")


def test_missing_list(tmp_path):
    voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(DataError, match=r"has no ImageSets/Segmentation/val.txt"):
        open_dataset(tmp_path, "val", kind="segmentation")
