import errno
import hashlib
import json
import tarfile

import numpy as np
import pytest
import torch

from mambar.data.classification.folder import ImageFolder
from mambar.data.shards import pack as packing
from mambar.data.shards.dataset import TarShards
from mambar.data.shards.pack import pack_folder
from mambar.errors import DataError, DiskError, InputError

BOTH = {"train/cat": 7, "train/dog": 5, "val/cat": 2, "val/dog": 3}


def tree(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("counts", [BOTH, {"cat": 10, "dog": 6}])
def test_shards_are_the_folder_they_came_from(counts, make_folder, tmp_path):
    root, calls = make_folder(counts), []
    packed = pack_folder(
        root, tmp_path / "tars", shard_bytes=6000, progress=lambda done, total: calls.append((done, total))
    )
    total = sum(counts.values())
    assert sum(packed.images.values()) == total and packed.unreadable == 0 and packed.shards > 3
    assert calls == [(done, total) for done in range(1, total + 1)]
    for split in ("train", "val"):
        folder, shards = ImageFolder(root, split), TarShards(tmp_path / "tars", split)
        assert shards.fingerprint() == folder.fingerprint() and shards.classes == folder.classes
        assert len(shards) == len(folder)
        for index in range(len(folder)):
            assert torch.equal(shards[index].image, folder[index].image)
            assert shards[index].label == folder[index].label
        shards.verify()


def test_the_tars_are_webdatasets(make_folder, tmp_path):
    root = make_folder(BOTH)
    # Readers of tars know a JPEG by .jpg only.
    (root / "train/cat/000.jpg").rename(root / "train/cat/000.jfif")
    pack_folder(root, tmp_path / "tars")
    with tarfile.open(tmp_path / "tars/train-000000.tar") as archive:
        names = archive.getnames()
        labels = [int(archive.extractfile(name).read()) for name in names if name.endswith(".cls")]
    assert {name.partition(".")[2] for name in names} == {"jpg", "cls"}
    assert [name.partition(".")[0] for name in names] == [f"{n:08d}" for n in range(12) for _ in range(2)]
    # Mixed, so that a reader that streams does not meet one class after the other.
    assert sorted(labels) != labels and sorted(labels) == [0] * 7 + [1] * 5
    assert json.loads((tmp_path / "tars/classes.json").read_text("utf-8")) == ["cat", "dog"]


def test_webdataset_itself_reads_them(make_folder, tmp_path, need_package):
    need_package("webdataset")
    import webdataset

    pack_folder(make_folder(BOTH), tmp_path / "tars")
    url = str(tmp_path / "tars/val-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls"))
    val = TarShards(tmp_path / "tars", "val")
    assert len(samples) == len(val) == 5
    ours = {bytes(np.asarray(val[i].image.permute(1, 2, 0))): val[i].label for i in range(5)}
    assert {bytes(np.asarray(pixels)): label for pixels, label in samples} == ours


def test_equal_folders_give_equal_bytes(make_folder, tmp_path):
    root = make_folder(BOTH)
    pack_folder(root, tmp_path / "one", shard_bytes=6000)
    before = tree(root)
    pack_folder(root, tmp_path / "two", shard_bytes=6000)
    assert tree(root) == before
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert {n: h for n, h in one.items() if n.endswith("tar")} == {n: h for n, h in two.items() if n.endswith("tar")}


def test_what_cannot_be_opened_is_packed_empty_and_behaves_as_in_the_folder(make_folder, tmp_path):
    root = make_folder(BOTH)
    (root / "train/cat/002.jpg").write_bytes(b"")
    (root / "train/dog/000.jpg").unlink()
    (root / "train/dog/000.jpg").symlink_to(root / "gone")
    assert pack_folder(root, tmp_path / "tars").unreadable == 2
    folder, shards = ImageFolder(root, "train"), TarShards(tmp_path / "tars", "train")
    for index in range(len(folder)):
        assert torch.equal(shards[index].image, folder[index].image)
    assert folder.unreadable.count == shards.unreadable.count == 2


def test_nothing_is_overwritten(make_folder, tmp_path):
    root = make_folder(BOTH)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x", "utf-8")
    (tmp_path / "file").write_text("x", "utf-8")
    before = tree(tmp_path)
    for out in ("full", "file"):
        with pytest.raises(DataError, match="choose a new or empty folder"):
            pack_folder(root, tmp_path / out)
    for out in (root, root / "train", root / "new"):
        with pytest.raises(DataError, match=r"out="):
            pack_folder(root, out)
    with pytest.raises(InputError, match="shard_bytes=3"):
        pack_folder(root, tmp_path / "new", shard_bytes=3)
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert pack_folder(root, tmp_path / "empty").images == {"train": 12, "val": 5}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_behind(code, make_folder, tmp_path, monkeypatch):
    def fails(path):
        raise OSError(code, "no room")

    root = make_folder(BOTH)
    before = tree(tmp_path)
    monkeypatch.setattr(packing, "shard_record", fails)
    with pytest.raises(DiskError, match="no room"):
        pack_folder(root, tmp_path / "tars")
    assert tree(tmp_path) == before and sorted(p.name for p in tmp_path.iterdir()) == ["pictures"]


def test_an_interrupted_packing_leaves_nothing_behind(make_folder, tmp_path):
    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_folder(make_folder(BOTH), tmp_path / "tars", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]
