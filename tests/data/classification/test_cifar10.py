import hashlib
import pickle

import numpy as np
import pytest
import torch

from data.pictures import encoded, photo
from mambar.data.classification.cifar10 import Cifar10, Cifar10Jpeg, has_npz
from mambar.data.dataset import ImageDataset
from mambar.data.loading.images import read_image
from mambar.errors import DataError

CLASSES = [f"class{number}" for number in range(10)]


def arrays(count=20, **changed):
    files = [encoded(photo(32, 32, seed)) for seed in range(count)]
    parts = {
        "jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.arange(count, dtype=np.uint8) % 10,
        "classes": np.array(CLASSES),
    }
    return files, {**parts, **changed}


def write(root, name="train.npz", **parts):
    root.mkdir(exist_ok=True)
    np.savez(root / name, **parts)


def test_npz_files_give_their_images(tmp_path):
    files, parts = arrays()
    write(tmp_path, "train.npz", **parts)
    write(tmp_path, "test.npz", **parts)
    assert has_npz(tmp_path) and not has_npz(tmp_path / "none")
    data = Cifar10Jpeg(tmp_path, "train")
    assert isinstance(data, ImageDataset)
    assert len(data) == 20 and data.classes == tuple(CLASSES)
    for index in (0, 13, 19):
        assert torch.equal(data[index].image, read_image(files[index]))
        assert data[index].label == index % 10
    assert data.fingerprint() == Cifar10Jpeg(tmp_path, "val").fingerprint()


def test_a_damaged_image_is_replaced_in_training_only(tmp_path):
    _, parts = arrays()
    jpeg = parts["jpeg"].copy()
    jpeg[: parts["offsets"][1]] = 0
    for name in ("train.npz", "test.npz"):
        write(tmp_path, name, **{**parts, "jpeg": jpeg})
    train = Cifar10Jpeg(tmp_path, "train")
    assert torch.equal(train[0].image, train[10].image)
    assert train.unreadable.count == 1 and train.unreadable.indices.tolist() == [0]
    with pytest.raises(ValueError, match="image 0 of"):
        Cifar10Jpeg(tmp_path, "val")[0]


def test_an_image_is_decoded_once(tmp_path, monkeypatch):
    files, parts = arrays()
    write(tmp_path, **parts)
    data = Cifar10Jpeg(tmp_path, "train")
    first = [data[index].image for index in range(20)]
    monkeypatch.setattr("mambar.data.classification.cifar10.read_image", None)
    for index in range(20):
        assert torch.equal(data[index].image, first[index]) and torch.equal(first[index], read_image(files[index]))


@pytest.mark.parametrize(
    "changed",
    [
        {"offsets": np.array([0, 5])},
        {"offsets": np.arange(21)},
        {"labels": np.full(20, 10)},
        {"labels": np.zeros(0, dtype=int)},
        {"jpeg": np.zeros(3, dtype=np.uint8)},
        {"classes": np.array(["one"])},
    ],
)
def test_files_that_do_not_hold_together_are_refused(changed, tmp_path):
    write(tmp_path, **arrays(**changed)[1])
    with pytest.raises(DataError, match=r"train\.npz is inconsistent"):
        Cifar10Jpeg(tmp_path, "train")


def test_files_that_are_no_arrays_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        Cifar10Jpeg(tmp_path, "train")
    (tmp_path / "train.npz").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        Cifar10Jpeg(tmp_path, "train")
    write(tmp_path, jpeg=np.zeros(3))
    with pytest.raises(DataError, match="lacks the array 'offsets'"):
        Cifar10Jpeg(tmp_path, "train")
    with pytest.raises(DataError, match="split='test'"):
        Cifar10Jpeg(tmp_path, "test")


def test_a_pickle_in_an_npz_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    write(tmp_path, **arrays(classes=np.array([Trap()], dtype=object))[1])
    with pytest.raises(DataError, match="cannot be read"):
        Cifar10Jpeg(tmp_path, "train")
    assert not (tmp_path / "ran").exists()


def test_torchvisions_layout_is_read(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)

    def store(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    batch = store("data_batch_1", {"data": pixels, "labels": list(range(10))})
    monkeypatch.setattr(CIFAR10, "train_list", [batch])
    monkeypatch.setattr(CIFAR10, "test_list", [store("test_batch", {"data": pixels[:3], "labels": [2, 1, 0]})])
    name, digest = store("batches.meta", {"label_names": CLASSES})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    train, val = Cifar10(tmp_path, split="train"), Cifar10(tmp_path, split="val")
    assert isinstance(train, ImageDataset)
    assert (len(train), len(val)) == (10, 3) and train.classes == tuple(CLASSES)
    assert torch.equal(train[4].image, torch.from_numpy(pixels[4].reshape(3, 32, 32)))
    assert [val[index].label for index in range(3)] == [2, 1, 0]
    assert train.fingerprint() != val.fingerprint()


def test_a_missing_download_says_so(tmp_path):
    with pytest.raises(DataError, match="download=true") as caught:
        Cifar10(tmp_path, split="train")
    assert "\n" not in str(caught.value)
