import pickle
import shutil

import pytest
import torch

from mambar.data import has_test_split, open_dataset
from mambar.data.dataset import ImageDataset
from mambar.data.shards.dataset import TarShards
from mambar.data.shards.index import index_path
from mambar.data.shards.pack import pack_folder
from mambar.errors import DataError, ImageError


@pytest.fixture
def packed(make_folder, tmp_path):
    pack_folder(make_folder({"train/a": 30, "train/b": 4, "val/a": 3, "val/b": 2}), tmp_path / "tars")
    return tmp_path / "tars"


def overwrite(path, offset, data):
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def test_shards_are_a_dataset_that_travels(packed):
    train = TarShards(packed, "train")
    assert isinstance(train, ImageDataset) and train.name == "tars"
    copy = pickle.loads(pickle.dumps(train))
    assert torch.equal(copy[33].image, train[33].image) and copy.fingerprint() == train.fingerprint()


def test_a_missing_index_is_built_once(packed):
    with_index = TarShards(packed, "train")
    file = index_path(packed, "train")
    file.unlink()
    without = TarShards(packed, "train")
    assert file.is_file() and len(without) == len(with_index) and without.classes == with_index.classes
    stamp = file.stat().st_mtime_ns
    images = sorted(without[index].image.numpy().tobytes() for index in range(34))
    assert images == sorted(with_index[index].image.numpy().tobytes() for index in range(34))
    TarShards(packed, "train")
    assert file.stat().st_mtime_ns == stamp
    without.verify()


def test_damage_is_found_by_checksum(packed):
    for split in ("train", "val"):
        index = TarShards(packed, split).index
        # Inside the JPEG's pixels, where the decoder would not notice.
        overwrite(packed / f"{split}-000000.tar", int(index.offset[1] + index.size[1] // 2), b"\x55\xaa")
    train, val = TarShards(packed, "train"), TarShards(packed, "val")
    assert torch.equal(train[1].image, train[2].image) and train.unreadable.count == 1
    with pytest.raises(ImageError, match="checksum"):
        val[1]
    with pytest.raises(DataError, match=r"train-000000\.tar is damaged: sha256"):
        train.verify()


def test_changed_or_missing_files_are_refused(packed):
    path = packed / "val-000000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match="copy it again"):
        TarShards(packed, "val")
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        TarShards(packed, "val")
    index_path(packed, "val").unlink()
    with pytest.raises(DataError, match="has no val shards"):
        TarShards(packed, "val")
    with pytest.raises(DataError, match=r"has no test shards, such as test-000000\.tar; it has train-000000\.tar"):
        TarShards(packed, "test")
    with pytest.raises(DataError, match="split='valid'"):
        TarShards(packed, "valid")


def test_a_test_folder_becomes_a_test_split(make_folder, tmp_path, packed):
    assert not has_test_split(packed)
    sizes = {"train": 5, "val": 2, "test": 3}
    splits = {f"{split}/{name}": count for split, count in sizes.items() for name in "ab"}
    counts = pack_folder(make_folder(splits, "three"), tmp_path / "three tars").images
    assert counts == {"train": 10, "val": 4, "test": 6} and has_test_split(tmp_path / "three tars")
    assert len(open_dataset(tmp_path / "three tars", "test")) == 6


def test_an_index_of_other_files_is_refused(packed):
    # The test images are used for validation, until there are validation images.
    for path in packed.glob("val*"):
        path.unlink() if path.suffix == ".npz" else path.rename(packed / "test-000000.tar")
    assert len(TarShards(packed, "val")) == 5 and not has_test_split(packed)
    shutil.copy(packed / "train-000000.tar", packed / "val-000000.tar")
    assert has_test_split(packed) and len(TarShards(packed, "test")) == 5
    with pytest.raises(DataError, match=r"val\.index\.npz was made of other tar files than the 1 from val-000000\.tar"):
        TarShards(packed, "val")


def test_imagenets_ids_become_words_and_exif_is_left(make_folder, tmp_path):
    pack_folder(make_folder({"n01440764": 3, "n01443537": 3}, "ids"), tmp_path / "tars")
    train = TarShards(tmp_path / "tars", "train")
    assert train.classes == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert not train.apply_exif_orientation
