"""The cache directory is private to the user, and nothing but the cached kernels is lost without it."""

import os
import stat
import subprocess
import sys

import pytest

from mambar.cache import cache_directory, optional_cache_directory, read_object, write_object
from mambar.errors import InputError

needs_posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@needs_posix
def test_directories_are_private(directory):
    assert cache_directory("kernels", "cpu") == directory / "cpu"
    assert stat.S_IMODE((directory / "cpu").stat().st_mode) == stat.S_IMODE(directory.stat().st_mode) == 0o700


@needs_posix
def test_a_directory_that_others_can_write_is_rejected(directory, caplog):
    write_object("kernels", "key", b"code")
    directory.chmod(0o777)
    with pytest.raises(InputError, match="can be written by others"):
        cache_directory("kernels")
    assert read_object("kernels", "key") is None
    write_object("kernels", "second", b"code")
    assert not (directory / "second.object").exists()
    assert caplog.text.count("can be written by others") == 1


@needs_posix
def test_a_link_below_the_cache_directory_is_rejected(directory, tmp_path):
    directory.parent.mkdir(mode=0o700)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "elsewhere")
    assert optional_cache_directory("kernels") is None


def test_a_file_in_place_of_the_directory_is_one_input_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set MAMBAR_CACHE"):
        cache_directory("kernels")


def test_the_home_directory_of_the_user_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("MAMBAR_CACHE", "~/cache")
    assert cache_directory("kernels") == tmp_path / "cache" / "kernels"


def test_written_code_is_read(directory):
    write_object("kernels", "key", b"code")
    assert read_object("kernels", "key") == b"code"
    assert [path.name for path in directory.iterdir()] == ["key.object"]


def test_nothing_is_read_if_nothing_was_written(directory):
    assert read_object("kernels", "key") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "of another key"])
def test_damaged_code_is_not_read(directory, damage):
    write_object("kernels", "key", b"code" * 10)
    file = directory / "key.object"
    content = file.read_bytes()
    if damage == "of another key":
        file.rename(directory / "other.object")
        assert read_object("kernels", "other") is None
        return
    changed = {"flip": content[:40] + bytes([content[40] ^ 1]) + content[41:], "cut": content[:-1], "empty": b""}
    file.write_bytes(changed[damage])
    assert read_object("kernels", "key") is None


# A model's first forward pass for a user without an entry in the password database.
FIRST_FORWARD = """
import pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
import torch
from mambar.models.config import VisionMambaConfig
from mambar.models.vision_mamba import VisionMamba
model = VisionMamba(VisionMambaConfig(img_size=32, patch_size=8, embed_dim=48, depth=1, num_classes=3)).eval()
with torch.no_grad():
    print(tuple(model(torch.zeros(1, 3, 32, 32)).shape))
"""


def first_forward(**environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "MAMBAR_CACHE")}
    command = [sys.executable, "-c", FIRST_FORWARD]
    done = subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0 and done.stdout == "(1, 3)\n", done.stderr[-3000:]
    return done.stderr


@needs_posix
def test_without_a_home_directory_only_the_cache_is_lost():
    pytest.importorskip("llvmlite")
    said = first_forward()
    assert said.count("Nothing is cached") == 1 and "set MAMBAR_CACHE" in said


@needs_posix
def test_with_a_read_only_home_directory_only_the_cache_is_lost():
    pytest.importorskip("llvmlite")
    # Directories below /proc cannot be created, even by root.
    said = first_forward(HOME="/proc")
    assert said.count("Nothing is cached") == 1 and "set MAMBAR_CACHE" in said


@needs_posix
@pytest.mark.parametrize("name", ["MAMBAR_CACHE", "XDG_CACHE_HOME"])
def test_a_named_cache_directory_needs_no_home_directory(name, tmp_path):
    pytest.importorskip("llvmlite")
    assert "cached" not in first_forward(**{name: str(tmp_path)})
    assert list(tmp_path.rglob("*.object"))
