import pytest

from boxed_files import BOXES, voc_xml, write_voc
from mambar.data import open_dataset
from mambar.data.classification.voc_objects import voc_objects
from mambar.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return write_voc(tmp_path)


def test_boxes_and_the_largest_object_are_read(folder):
    dataset = open_dataset(folder, "val")
    assert len(dataset) == 2 and len(dataset.classes) == 20
    (x0, y0, x1, y1), sample = BOXES[1], dataset[1]
    assert sample.targets["boxes"].tolist() == [[x0, y0, x1 + 1, y1 + 1], [0, 32, 16, 48]]
    assert [dataset.classes[label] for label in sample.targets["box_labels"]] == ["cat", "dog"]
    assert dataset.classes[sample.label] == "cat" and sample.image.shape == (3, 64, 64)


def test_own_classes_are_those_of_both_splits(folder):
    xml = folder / "VOC2007/Annotations"
    (xml / "000001.xml").write_text(voc_xml([("weld", (1, 1, 9, 9), False)]), "utf-8")
    assert open_dataset(folder, "val").classes == open_dataset(folder, "train").classes == ("cat", "dog", "weld")


def test_images_without_objects_are_left_out(folder):
    (folder / "VOC2007/Annotations/000003.xml").write_text(voc_xml([]), "utf-8")
    assert len(open_dataset(folder, "val")) == 1
    (folder / "VOC2007/Annotations/000004.xml").write_text(voc_xml([]), "utf-8")
    with pytest.raises(DataError, match="lists no image with an object"):
        open_dataset(folder, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "cannot be read"),
        (voc_xml([("cat", (9, 1, 3, 4), False)]), "has the box 9, 1, 3, 4"),
        ("<annotation><object><name>cat</name></object></annotation>", "has the box nan"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "declares a document type"),
    ],
)
def test_a_wrong_annotation_is_named(folder, text, message):
    (folder / "VOC2007/Annotations/000003.xml").write_text(text, "utf-8")
    with pytest.raises(DataError, match=f"000003.xml cannot be read.*{message}|{message}"):
        open_dataset(folder, "val")


def test_missing_files_are_named(folder):
    (folder / "VOC2007/ImageSets/Main/val.txt").write_text("../../000003\n", "utf-8")
    with pytest.raises(DataError, match="which has no Annotations"):
        open_dataset(folder, "val")
    (folder / "VOC2007/ImageSets/Main/val.txt").unlink()
    with pytest.raises(DataError, match=r"has no names in ImageSets/Main/val.txt"):
        open_dataset(folder, "val")
    with pytest.raises(DataError, match="has no JPEGImages and Annotations"):
        voc_objects(folder / "VOC2007/ImageSets", split="val")
