import os
import stat

import pytest

pytest.importorskip("llvmlite")

from mambar.ops.llvm.cache import read_object, write_object


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llvm"


def test_what_was_written_is_read(directory):
    write_object("key", b"code")
    assert read_object("key") == b"code"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [path.name for path in directory.iterdir()] == ["key.object"]


def test_nothing_is_read_where_nothing_was_written(directory):
    assert read_object("key") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "of another key"])
def test_damaged_code_is_not_read(directory, damage):
    write_object("key", b"code" * 10)
    file = directory / "key.object"
    content = file.read_bytes()
    if damage == "of another key":
        file.rename(directory / "other.object")
        assert read_object("other") is None
        return
    changed = {"flip": content[:40] + bytes([content[40] ^ 1]) + content[41:], "cut": content[:-1], "empty": b""}
    file.write_bytes(changed[damage])
    assert read_object("key") is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_a_directory_others_can_write_is_refused(directory, caplog):
    write_object("key", b"code")
    directory.chmod(0o777)
    assert read_object("key") is None
    write_object("second", b"code")
    assert "can be written by others" in caplog.text and not (directory / "second.object").exists()
