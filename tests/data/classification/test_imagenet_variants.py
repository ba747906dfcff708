import json

import pytest
import torch

from boxed_files import BOXES, scene
from mambar.data import open_dataset
from mambar.data.classification.imagenet_variants import class_columns, imagenet_ids
from mambar.data.classification.wordnet import wordnet_names
from mambar.errors import DataError

# Goldfish and tabby: labels 1 and 281.
IDS = {"n01443537": 1, "n02123045": 281}


def write(root, files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        scene(BOXES[0], 1).save(root / file)
    return root


def valid(dataset):
    return [dataset[index].targets["valid_labels"].tolist() for index in range(len(dataset))]


def opened(root, **options):
    return open_dataset("imagenet_variant", "val", root=root, **options)


def test_folders_of_wordnet_ids(tmp_path):
    dataset = opened(write(tmp_path, [f"{own}/{number}.png" for own in IDS for number in range(2)]))
    assert valid(dataset) == [[1], [1], [281], [281]] and dataset[3].label == 281
    assert dataset.occurring.nonzero().flatten().tolist() == [1, 281] and len(dataset.classes) == 1000


def test_folders_of_numbers_are_not_sorted_as_text(tmp_path):
    assert valid(opened(write(tmp_path, ["2/a.png", "10/a.png", "9/a.png"]))) == [[10], [2], [9]]


def test_real_labels_belong_to_the_numbers_of_the_files(tmp_path):
    names = [f"ILSVRC2012_val_{number:08d}.png" for number in (3, 1, 2)]
    real = tmp_path / "real.json"
    real.write_text(json.dumps([[1, 281], [], [9]]), "utf-8")
    root = write(tmp_path / "images", [names[0], *(f"n01443537/{name}" for name in names[1:])])
    dataset = opened(root, real_labels=str(real))
    assert sorted(valid(dataset)) == [[1, 281], [9]]
    assert dataset.fingerprint() == opened(root, real_labels=str(real)).fingerprint()


@pytest.mark.parametrize(
    ("files", "real", "message"),
    [
        (["cats/1.png"], None, "is in no class folder of ImageNet"),
        (["1000/1.png"], None, "is in no class folder of ImageNet"),
        ([], None, "has no labeled image"),
        (["a.png"], [[1]], "has no number from 1 to 1"),
        (["a_00000002.png"], [[1]], "has no number from 1 to 1"),
        (["a_00000001.png"], [[1000]], "labels that are not from 0 to 999"),
        (["a_00000001.png"], 5, "is no list of lists"),
        (["a_00000001.png"], [[]], "has no labeled image"),
    ],
)
def test_another_layout_is_named(tmp_path, files, real, message):
    options = {}
    if real is not None:
        options["real_labels"] = str(tmp_path / "real.json")
        (tmp_path / "real.json").write_text(json.dumps(real), "utf-8")
    with pytest.raises(DataError, match=message):
        opened(write(tmp_path / "images", files), **options)


def test_columns_of_a_model_with_all_classes():
    assert torch.equal(class_columns(None, 1000), torch.arange(1000))
    assert torch.equal(class_columns(wordnet_names(imagenet_ids()), 1000), torch.arange(1000))
    assert torch.equal(class_columns(imagenet_ids()[::-1], 1000), torch.arange(999, -1, -1))


def test_columns_of_a_model_with_some_classes():
    columns = class_columns(("tabby, tabby cat", "not in ImageNet", *wordnet_names(("n01443537",))), 3)
    assert columns[281] == 0 and columns[1] == 2 and (columns >= 0).sum() == 2
    with pytest.raises(DataError, match="none of the model's classes"):
        class_columns(("disc", "square"), 2)
    with pytest.raises(DataError, match="has 10 classes without names"):
        class_columns(None, 10)
