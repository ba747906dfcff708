import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pictures import encoded, photo
from mambar.data.shards.index import (
    build_index,
    index_path,
    read_index,
    save_index,
    shard_files,
    tar_members,
)
from mambar.data.shards.pack import pack_folder
from mambar.errors import DataError

PICTURE = encoded(photo(8, 8))


def member(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def pair(name, label=b"0"):
    return [member(f"{name}.jpg", PICTURE), member(f"{name}.cls", label)]


def with_size(name, size):
    """A tar whose first header claims a size that is not there; negative ones in the binary notation."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = (size % 256**12).to_bytes(12, "big") if size < 0 else b"%011o\0" % size
    if size >= 0:
        pass
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"\0" * 1536


def listing(root):
    return {str(path.relative_to(root)): path.lstat().st_size for path in sorted(root.rglob("*"))}


def test_foreign_shards_are_indexed(tmp_path, caplog):
    more = [member("a/1.json", b"{}"), member("z.cls", b"1")]
    write_tar(tmp_path / "set-train-0.tar", [*pair("a/1", b"2"), *more, *pair("b/1", b"0\n")])
    write_tar(tmp_path / "set-train-1.tar", pair("c.d/2", b" 1 "), format=tarfile.PAX_FORMAT)
    write_tar(tmp_path / "set-val-0.tar", pair("x"))
    files = shard_files(tmp_path, "train")
    assert [file.name for file in files] == ["set-train-0.tar", "set-train-1.tar"]
    index = build_index(tmp_path, files)
    assert index.classes == ("0", "1", "2") and index.labels.tolist() == [2, 0, 1]
    assert "members that are neither an image (PNG, JPEG, WEBP) nor a label are left out: 1 (1 .json)" in caplog.text
    assert "labels without an image are left out: 1 (1 .cls), such as 'z.cls'" in caplog.text
    assert list(index.paths) == ["a/1.jpg", "b/1.jpg", "c.d/2.jpg"] and index.shard.tolist() == [0, 0, 1]
    for number in range(3):
        data = files[index.shard[number]].read_bytes()
        assert data[index.offset[number] :][: index.size[number]] == PICTURE
    (tmp_path / "classes.json").write_text(json.dumps(["x", "y", "z", "unused"]), "utf-8")
    assert build_index(tmp_path, files).classes == ("x", "y", "z", "unused")


@pytest.mark.parametrize("text", ["[1, 2]", "{}", "[", '["only one"]', "[" * 100_000])
def test_wrong_class_lists_are_refused(text, tmp_path):
    write_tar(tmp_path / "train-0.tar", pair("1", b"1"))
    (tmp_path / "classes.json").write_text(text, "utf-8")
    with pytest.raises(DataError, match="JSON list"):
        build_index(tmp_path, shard_files(tmp_path, "train"))


HOSTILE = {
    "absolute path": (lambda p: write_tar(p, pair("/etc/mambar-evil")), None),
    "upward path": (lambda p: write_tar(p, pair("../../mambar-evil")), None),
    "symbolic link": (
        lambda p: write_tar(p, [member("a.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")]),
        "not a regular",
    ),
    "hard link": (lambda p: write_tar(p, [member("a.jpg", type=tarfile.LNKTYPE, linkname="b")]), "not a regular"),
    "device": (lambda p: write_tar(p, [member("a.jpg", type=tarfile.CHRTYPE)]), "not a regular"),
    "pipe": (lambda p: write_tar(p, [member("a.jpg", type=tarfile.FIFOTYPE)]), "not a regular"),
    "sparse": (lambda p: write_tar(p, [member("a.jpg", type=tarfile.GNUTYPE_SPARSE)]), "not a regular|not a plain"),
    "larger than the file": (lambda p: p.write_bytes(with_size("a.jpg", 10_000_000)), "too large|not a plain"),
    "huge": (lambda p: p.write_bytes(with_size("a.jpg", 8**10)), "too large|not a plain"),
    "negative size": (lambda p: p.write_bytes(with_size("a.jpg", -1024)), "overlap|not a plain"),
    "compressed": (lambda p: p.write_bytes(gzip.compress(b"\0" * 10_000_000)), "not a plain"),
    "garbage": (lambda p: p.write_bytes(b"\xff" * 4096), "not a plain"),
    "truncated": (lambda p: p.write_bytes(write_tar(p, pair("a")).read_bytes()[:700]), "too large|not a plain"),
    "the same image twice": (lambda p: write_tar(p, pair("a") + pair("a")), "twice"),
    "no label": (lambda p: write_tar(p, [member("a.jpg", PICTURE)]), "has no label"),
    "a label of words": (lambda p: write_tar(p, pair("a", b"cat")), "not a label"),
    "a negative label": (lambda p: write_tar(p, pair("a", b"-1")), "not a label"),
    "a huge label": (lambda p: write_tar(p, pair("a", b"9" * 4000)), "not a label"),
    "nothing": (lambda p: write_tar(p, []), "hold no images"),
    "many long names": (
        lambda p: p.write_bytes(
            member("x" * 90)[0].tobuf(tarfile.USTAR_FORMAT).replace(b"0\0ustar", b"L\0ustar") * 3000
        ),
        "not a plain|hold no images",
    ),
}


@pytest.mark.rel
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_archives_write_nothing_and_are_refused_or_only_read(name, tmp_path):
    root = tmp_path / "in" / "side"
    root.mkdir(parents=True)
    write, match = HOSTILE[name]
    write(root / "train-0.tar")
    before = listing(tmp_path)
    if match is None:
        # Such a name is only a key.
        assert len(build_index(root, shard_files(root, "train")).labels) == 1
    else:
        with pytest.raises(DataError, match=match) as caught:
            build_index(root, shard_files(root, "train"))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert listing(tmp_path) == before


@pytest.mark.rel
def test_the_harness_sees_a_careless_extraction(tmp_path):
    (tmp_path / "in").mkdir()
    HOSTILE["upward path"][0](tmp_path / "in" / "train-0.tar")
    before = listing(tmp_path)
    with tarfile.open(tmp_path / "in" / "train-0.tar") as archive:
        for info in archive:
            (tmp_path / "in" / "out" / info.name.removeprefix("../")).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / "out" / info.name.removeprefix("../")).write_bytes(b"")
    assert listing(tmp_path) != before


@pytest.fixture
def packed(make_folder, tmp_path):
    pack_folder(make_folder({"a": 4, "b": 4}), tmp_path / "tars")
    return tmp_path / "tars"


def test_an_index_comes_back_from_its_file(packed):
    file = index_path(packed, "train")
    index = read_index(file)
    save_index(packed / "again.npz", index)
    again = read_index(packed / "again.npz")
    assert again.shards == index.shards and again.classes == index.classes
    assert np.array_equal(again.offset, index.offset) and list(again.paths) == list(index.paths)
    assert not list(packed.glob("*.tmp"))


def rewrite(file, meta=None, **changed):
    with np.load(file) as stored:
        arrays = dict(stored)
    described = json.loads(arrays["meta"].tobytes())
    if meta:
        meta(described)
    arrays["meta"] = np.frombuffer(json.dumps(described).encode(), dtype=np.uint8)
    np.savez(file, **{**arrays, **{name: change(arrays[name]) for name, change in changed.items()}})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"meta": lambda m: m["shards"][0].update(name="../x.tar")}, "outside its folder"),
        ({"meta": lambda m: m["shards"][0].update(name="/etc/passwd")}, "outside its folder"),
        ({"meta": lambda m: m["shards"][0].update(name="a\\b")}, "outside its folder"),
        ({"meta": lambda m: m["shards"][0].update(name="")}, "outside its folder|missing"),
        ({"meta": lambda m: m.update(format_version=2)}, "newer format"),
        ({"meta": lambda m: m.update(shards=[])}, "empty"),
        ({"meta": lambda m: m.pop("classes")}, "not a usable"),
        ({"meta": lambda m: m.update(classes=["a"])}, "labels that are not among"),
        ({"offset": lambda a: -a}, "out of range"),
        ({"offset": lambda a: a + 10**12}, "beyond the end"),
        ({"offset": lambda a: a + (2**63 - 1 - int(a.max()))}, "beyond the end"),
        ({"size": lambda a: a + 10**12}, "out of range"),
        ({"size": lambda a: a[:-1]}, "not a usable"),
        ({"shard": lambda a: a + 9}, "does not list"),
        ({"labels": lambda a: a - 1}, "labels"),
        ({"crc": lambda a: a.astype(object)}, "not a usable"),
        ({"path_offsets": lambda a: a[:-1]}, "not a usable"),
    ],
)
def test_a_changed_index_is_refused(changes, match, packed):
    file = index_path(packed, "train")
    rewrite(file, **changes)
    with pytest.raises(DataError, match=match) as caught:
        read_index(file).check_files(packed)
    assert "\n" not in str(caught.value)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_damaged_index_file_is_refused_or_unchanged(place, flip):
    index = small_index()
    data = bytearray(index[1])
    data[place % len(data)] ^= flip
    file = index[0].with_name("damaged.npz")
    file.write_bytes(data)
    try:
        found = read_index(file)
    except DataError:
        return
    sound = read_index(index[0])
    assert found.shards == sound.shards and np.array_equal(found.offset, sound.offset)
    assert np.array_equal(found.labels, sound.labels) and list(found.paths) == list(sound.paths)


_SMALL = []


def small_index():
    if not _SMALL:
        import tempfile
        from pathlib import Path

        root = Path(tempfile.mkdtemp())
        write_tar(root / "train-0.tar", pair("a") + pair("b"))
        save_index(index_path(root, "train"), build_index(root, shard_files(root, "train")))
        _SMALL.extend([index_path(root, "train"), index_path(root, "train").read_bytes()])
    return _SMALL


def test_directories_in_a_tar_are_passed_over(tmp_path):
    path = write_tar(tmp_path / "train.tar", [member("d", type=tarfile.DIRTYPE), *pair("d/a")])
    assert [name for name, _, _ in tar_members(path)] == ["d/a.jpg", "d/a.cls"]


@pytest.mark.parametrize(
    ("name", "split", "found"),
    [
        ("train-000000.tar", "train", True),
        ("imagenet-train-000001.tar", "train", True),
        ("imagenet1k-validation-1.tar", "val", True),
        ("Test_0.tar", "val", True),
        ("val_3.tar", "val", True),
        ("strain-1.tar", "train", False),
        ("training-1.tar", "train", True),
        ("train.tar.gz", "train", False),
    ],
)
def test_a_split_is_a_word_of_the_files_name(name, split, found, tmp_path):
    (tmp_path / name).touch()
    assert bool(shard_files(tmp_path, split)) == found
