import sys

import pytest
import torch

from data.pictures import encoded, photo
from mambar.data import has_test_split
from mambar.data.classification.hf_datasets import HuggingFaceDataset
from mambar.data.dataset import ImageDataset
from mambar.data.loading.images import read_image
from mambar.data.loading.loaders import training_batches
from mambar.data.registry import open_dataset
from mambar.data.transforms.classification import Preprocessing, TrainTransform
from mambar.errors import DataError, ImageError

FILES = [encoded(photo(24, 20, seed)) for seed in range(12)]


@pytest.fixture
def saved(tmp_path, need_package):
    """A function that writes splits of 12 images with `save_to_disk` and gives the folder."""
    need_package("datasets")
    import datasets

    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["ant", "bee", "cat"]),
            "id": datasets.Value("int32"),
        }
    )

    def save(*splits, files=FILES, **changed):
        columns = {
            "picture": [{"bytes": data, "path": None} for data in files],
            "kind": [number % 3 for number in range(len(files))],
            "id": list(range(len(files))),
            **changed,
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        whole = datasets.DatasetDict({split: table for split in splits}) if splits else table
        whole.save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return save


def test_its_images_are_those_that_were_stored(saved):
    root = saved("train", "test")
    data = open_dataset(root, "train")
    assert isinstance(data, HuggingFaceDataset) and isinstance(data, ImageDataset)
    assert data.classes == ("ant", "bee", "cat") and len(data) == 12 and data.name == "saved"
    for index in (0, 7, 11):
        assert torch.equal(data[index].image, read_image(FILES[index])) and data[index].label == index % 3
    assert len(open_dataset(root, "val")) == 12
    assert data.fingerprint() == open_dataset(root, "train").fingerprint()


def test_workers_read_it_too(saved):
    data = open_dataset(saved("train", "validation"), "train")
    transform = TrainTransform(preprocessing=Preprocessing(img_size=8))
    options = {"seed": 0, "epoch": 0, "batch_size": 4}
    alone, helped = (list(training_batches(data, transform, num_workers=workers, **options)) for workers in (0, 2))
    assert len(alone) == 3 and all(torch.equal(a.images, b.images) for a, b in zip(alone, helped, strict=True))


def test_without_a_validation_split_every_class_gives_some(saved):
    root = saved()
    train, val = (open_dataset(root, split, val_fraction=0.25) for split in ("train", "val"))
    assert len(train) == 9 and sorted(val.labels.tolist()) == [0, 1, 2]
    both = {tuple(part[i].image.flatten().tolist()) for part in (train, val) for i in range(len(part))}
    assert len(both) == 12
    assert train.fingerprint() != val.fingerprint()


def test_a_test_split_beside_validation_is_one(saved, caplog):
    root = saved("train", "validation", "test")
    assert has_test_split(root) and len(open_dataset(root, "test")) == 12 and "not used" not in caplog.text
    with pytest.raises(DataError, match="has train and val and test"):
        open_dataset(root, "validation")


def test_a_test_split_without_labels_or_validation_is_none(saved, caplog):
    root = saved("train", "validation", "test", kind=[-1] * 12)
    assert not has_test_split(root) and "the images of test have no labels" in caplog.text
    with pytest.raises(DataError, match=r"split='test' is not there: .* has train and val\."):
        open_dataset(root, "test")


def test_test_images_alone_are_for_validation(saved):
    root = saved("train", "test")
    assert not has_test_split(root)
    with pytest.raises(DataError, match="has train and val; its test images are split='val'"):
        open_dataset(root, "test")
    with pytest.raises(DataError, match="no split called test; it has train, test"):
        HuggingFaceDataset(root, "test")


def test_what_has_no_label_is_left_out_and_counted(saved, caplog):
    root = saved("train", "Validation", kind=[-1, 0, 1, 2] * 3)
    assert open_dataset(root, "train").labels.tolist() == [0, 1, 2] * 3
    assert len(open_dataset(root, "val")) == 9 and "3 of 12 images in train have no label" in caplog.text
    root = saved("train", "test", kind=[-1] * 12)
    with pytest.raises(DataError, match="no labeled images"):
        open_dataset(root, "train")


def test_a_damaged_image_is_replaced_in_training_only(saved):
    root = saved("train", "test", files=[FILES[0][:40], *FILES[1:]])
    train = open_dataset(root, "train")
    assert torch.equal(train[0].image, read_image(FILES[3])) and train.unreadable.count == 1
    with pytest.raises(ImageError, match="image 0 of"):
        open_dataset(root, "val")[0]


def test_columns_can_be_named_and_wrong_ones_are_refused(saved):
    root = saved("train", "test")
    assert len(open_dataset(root, "train", image="picture", label="kind")) == 12
    with pytest.raises(DataError, match="label=id is not a ClassLabel column; these are: kind"):
        open_dataset(root, "train", label="id")
    with pytest.raises(DataError, match="did you mean 'label'"):
        open_dataset(root, "train", labl="id")


def test_what_cannot_be_opened_is_one_line(saved, tmp_path):
    for data in (saved("test"), tmp_path / "broken"):
        if data.name == "broken":
            data.mkdir()
            (data / "dataset_info.json").write_text("{", "utf-8")
        with pytest.raises(DataError, match="data=") as caught:
            open_dataset(data, "train")
        assert "\n" not in str(caught.value)


def test_a_set_on_the_hub_goes_by_its_name(need_package, monkeypatch):
    need_package("datasets")
    import datasets

    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        raise ConnectionError("no net")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="hf:someone/birds cannot be opened: no net"):
        open_dataset("hf:someone/birds", "train", subset="small", revision="abc")
    assert asked == [(("someone/birds", "small"), {"revision": "abc"})]


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"\(extra data\); install with: pip install datasets"):
        open_dataset("hf:someone/birds", "train")
