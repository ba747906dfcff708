"""Datasets of users: registered classes, mappings and single objects."""

import numpy as np
import pytest
import torch
from PIL import Image

from mambar.data import Sample, Subset, open_dataset, register_dataset
from mambar.data.dataset import ImageDataset
from mambar.data.registry import DATASETS
from mambar.data.segmentation.masks import palette
from mambar.data.synthetic.shapes import Shapes
from mambar.data.transforms.segmentation import MaskChannelDataset
from mambar.errors import DataError, ImageError


class Gray:
    """Item i is an image of value i; class i % 2; `damaged` items raise OSError, as Pillow does."""

    classes = ("even", "odd")

    def __init__(self, count=20, damaged=(), kind="tensor"):
        self.count, self.damaged, self.kind = count, damaged, kind

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.damaged:
            raise OSError("truncated")
        pixels = torch.full((3, 4, 5), index, dtype=torch.uint8)
        if self.kind == "sample":
            return Sample(pixels, index % 2, targets={"boxes": [[0, 0, 2, 2]] * index})
        if self.kind == "mask":
            return pixels, torch.full((4, 5), index % 2, dtype=torch.uint8)
        return (Image.fromarray(pixels.permute(1, 2, 0).numpy()) if self.kind == "pillow" else pixels), index % 2


class Labeled(Gray):
    """With the attribute that torchvision's datasets have."""

    @property
    def targets(self):
        return [index % 2 for index in range(self.count)]


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr("mambar.data.registry.DATASETS", {kind: dict(names) for kind, names in DATASETS.items()})


def test_a_registered_class_is_opened_by_name(registry):
    @register_dataset("mine")
    class Mine(Gray):
        def __init__(self, split, *, count=10):
            super().__init__(count if split == "train" else 4)

    found = open_dataset("mine", "train", count=8)
    assert isinstance(found, ImageDataset) and len(found) == 8 and len(open_dataset("mine", "val")) == 4
    assert (found.name, found.classes, found[3].label) == ("mine", ("even", "odd"), 1)
    assert len(open_dataset("mine", "train", limit=3)) == 3
    with pytest.raises(DataError, match=r"did you mean .?count"):
        open_dataset("mine", "train", cuont=3)
    with pytest.raises(DataError, match=r"does not exist .* did you mean 'mine'"):
        open_dataset("mine2", "train")


def test_a_new_kind_can_be_registered(registry):
    register_dataset("boxes", lambda split: Gray(6, kind="sample"), kind="tracking")
    found = open_dataset("boxes", "val", kind="tracking")
    assert len(found[5].targets["boxes"]) == 5 and found[0].targets == {"boxes": []}
    with pytest.raises(DataError, match="tracking has no path layouts; use boxes"):
        open_dataset("/", "train", kind="tracking")
    with pytest.raises(DataError, match="unknown; use classification, segmentation, detection, images, tracking"):
        open_dataset("boxes", "val", kind="depth")


def test_a_taken_name_and_a_path_are_no_names(registry):
    with pytest.raises(DataError, match="'digits' is already a classification dataset"):
        register_dataset("digits", Gray)
    for name in ("", "a/b", "hf:x", "./x"):
        with pytest.raises(DataError, match="is not a dataset name"):
            register_dataset(name, Gray)


@pytest.mark.parametrize("kind", ["tensor", "pillow", "sample"])
def test_items_may_be_samples_or_pairs(kind):
    found = open_dataset({"train": Gray(kind=kind), "val": Gray(4)}, "train")
    assert torch.equal(found[7].image, torch.full((3, 4, 5), 7, dtype=torch.uint8)) and found[7].label == 1


def test_a_mapping_has_both_splits():
    data = {"train": Gray(8), "val": Shapes(split="val", img_size=8, num_images=3)}
    assert len(open_dataset(data, "train")) == 8 and isinstance(open_dataset(data, "val"), Shapes)
    with pytest.raises(DataError, match="no split 'val'; it has train"):
        open_dataset({"train": Gray()}, "val")


@pytest.mark.parametrize("kind", [Gray, Labeled])
def test_one_object_is_split_by_class(kind, caplog):
    caplog.set_level("INFO")
    train, val = (open_dataset(kind(), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (16, 4) and "20 % of every class" in caplog.text
    values = [int(part[index].image[0, 0, 0]) for part in (train, val) for index in range(len(part))]
    assert sorted(values) == list(range(20))
    assert sorted(val[index].label for index in range(4)) == [0, 0, 1, 1]
    assert len(open_dataset(kind(), "val", val_fraction=0.5)) == 10
    assert isinstance(open_dataset(Shapes(img_size=8, num_images=20), "val"), Subset)
    with pytest.raises(DataError, match="no option 'root'"):
        open_dataset(kind(), "val", root="x")


def test_the_fingerprint_follows_content_and_split():
    prints = [open_dataset(Gray(), "train").fingerprint(), open_dataset(Gray(), "val").fingerprint()]
    prints += [open_dataset({"train": given}, "train").fingerprint() for given in (Gray(19), Gray(damaged=(0,)))]
    assert len(set(prints)) == 4
    assert open_dataset(Gray(), "train").fingerprint() == prints[0]
    own = Gray()
    own.fingerprint = lambda: "version 1"
    assert open_dataset({"train": own}, "train").fingerprint() != open_dataset({"train": Gray()}, "train").fingerprint()


def test_damaged_items_are_replaced_in_training_and_counted_in_evaluation():
    data = {"train": Labeled(damaged=(3,)), "val": Gray(damaged=(3,))}
    train, val = (open_dataset(data, split) for split in ("train", "val"))
    assert int(train[3].image[0, 0, 0]) == 5 and train[3].label == 1 and train.unreadable.count == 1
    with pytest.raises(ImageError, match="item 3 of Gray cannot be read: truncated"):
        val[3]


def test_masks_and_colors_of_a_segmentation_object():
    found = open_dataset(Gray(kind="mask"), "train", kind="segmentation")
    assert found[1].mask is not None and found.palette == palette(2)
    stacked = MaskChannelDataset(found)
    assert stacked[1].image.shape == (4, 4, 5) and stacked.palette == palette(2)


@pytest.mark.parametrize("wrong", [3, None, [1, 2], np.zeros(3)])
def test_an_object_without_the_contract_is_refused(wrong):
    with pytest.raises(DataError, match="has no"):
        open_dataset(wrong, "train")


def test_pixels_are_bytes():
    class Normalized(Gray):
        def __getitem__(self, index):
            return torch.zeros(3, 4, 4), 0

    with pytest.raises(DataError, match=r"torch\.float32; use uint8"):
        open_dataset({"train": Normalized()}, "train")[0]
