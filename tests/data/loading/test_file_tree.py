"""A folder and a zip archive read alike; nothing hostile gets out of an archive."""

import pickle
import stat
import zipfile

import pytest

from mambar.data.loading import file_tree
from mambar.data.loading.file_tree import Directory, open_tree, single_folder
from mambar.errors import DataError, ImageError

FILES = {"a/one.png": b"1", "a/b/two.png": b"22", "top.txt": "é".encode()}


@pytest.fixture(params=["folder", "zip", "folder in folder", "folder in zip"])
def tree(request, tmp_path):
    start = "Released/" if "in" in request.param else ""
    if not request.param.endswith("zip"):
        for name, data in FILES.items():
            path = tmp_path / "data" / start / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (tmp_path / "data" / start / ".hidden").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name, data in FILES.items():
            archive.writestr(start + name, data)
        archive.writestr(f"__MACOSX/{start}x.png", b"")
    found = open_tree(tmp_path / ("data.zip" if request.param.endswith("zip") else "data"))
    assert (single_folder(found) is None) is (not start)
    return single_folder(found) or found


def test_reads_alike(tree):
    assert tree.folders() == ["a"] and tree.folders("a") == ["b"] and tree.folders("none") == []
    assert tree.files() == ["a/b/two.png", "a/one.png", "top.txt"]
    assert tree.files("a") == ["b/two.png", "one.png"]
    assert tree.read("a/b/two.png") == b"22"
    assert tree.text("top.txt") == "é" and tree.text("none.txt") is None
    with pytest.raises(ImageError, match="none"):
        tree.read("none.png")


def test_another_process_opens_for_itself(tree):
    assert pickle.loads(pickle.dumps(tree)).read("a/one.png") == b"1"


@pytest.mark.parametrize(("name", "message"), [("none", "does not exist"), ("x.tar", "is neither a folder nor a .zip")])
def test_other_paths(tmp_path, name, message):
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        open_tree(tmp_path / name)


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for info, data in members:
            file.writestr(info, data)
    return path


def linked(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


@pytest.mark.rel
@pytest.mark.parametrize(
    "member",
    [
        ("../out.png", b"x"),
        ("a/../../out.png", b"x"),
        ("/etc/out.png", b"x"),
        linked("link.png", "/etc/passwd"),
        linked("images", "/etc"),
    ],
    ids=["up", "up inside", "absolute", "link", "link to folder"],
)
def test_members_that_lead_out_are_not_there(tmp_path, member):
    path = archive(tmp_path / "bad.zip", [("good/a.png", b"1"), ("good.txt", b""), member])
    found = open_tree(path)
    assert found.files() == ["good.txt", "good/a.png"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad.zip"]


@pytest.mark.rel
def test_bomb_is_refused(tmp_path):
    path = archive(tmp_path / "bomb.zip", [("a/bomb.png", bytes(20_000_000))])
    with pytest.raises(DataError, match="unpacks from"):
        open_tree(path)


@pytest.mark.rel
def test_header_that_lies_about_the_size(tmp_path, monkeypatch):
    path = archive(tmp_path / "lie.zip", [("a/x.png", b"0123456789" * 50), ("b", b"")])
    found = open_tree(path)
    found.members["a/x.png"].file_size = 10
    with pytest.raises(ImageError):
        found.read("a/x.png")


@pytest.mark.rel
def test_damaged_member_and_archive(tmp_path):
    path = archive(tmp_path / "data.zip", [("a/x.png", b"0123456789" * 50), ("b", b"")])
    data = bytearray(path.read_bytes())
    data[45:50] = b"\xff" * 5
    path.write_bytes(data)
    with pytest.raises(ImageError, match="cannot be read"):
        open_tree(path).read("a/x.png")
    path.write_bytes(b"PK" + bytes(50))
    with pytest.raises(DataError, match="no readable zip"):
        open_tree(path)


def test_encrypted_member_is_an_image_error(tmp_path):
    path = archive(tmp_path / "data.zip", [("a/x.png", b"secret"), ("b", b"")])
    data = bytearray(path.read_bytes())
    for start in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[start] |= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"encrypted|password"):
        open_tree(path).read("a/x.png")


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(file_tree, "MAX_MEMBERS", 1)
    with pytest.raises(DataError, match="2 members"):
        open_tree(archive(tmp_path / "many.zip", [("a", b""), ("b", b"")]))


def test_large_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mambar.image_file.MAX_BYTES", 3)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.png").write_bytes(b"12345")
    with pytest.raises(ImageError, match="5 bytes"):
        open_tree(tmp_path / "d").read("x.png")
    with pytest.raises(ImageError, match="not a regular file"):
        Directory(tmp_path).read("d")
