"""A file lands whole or not at all."""

import os
import stat

import pytest

from mambar.errors import DiskError, InputError
from mambar.export.atomic_output import atomic_output


def test_it_lands_with_the_usual_rights_and_leaves_nothing_else(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_output(tmp_path / "new" / "file") as path:
            path.write_bytes(b"whole")
    finally:
        os.umask(before)
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["file"]
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) == 0o640


def test_an_exception_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_output(tmp_path / "file", force=True) as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_nothing_is_overwritten_or_written_through(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    for taken in ("victim", "link"):
        with pytest.raises(InputError, match="exists already"), atomic_output(tmp_path / taken):
            raise AssertionError
    with atomic_output(tmp_path / "link", force=True) as path:
        path.write_bytes(b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious" and not (tmp_path / "link").is_symlink()
    with pytest.raises(InputError, match="is a directory"), atomic_output(tmp_path, force=True):
        raise AssertionError


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="could not be written"), atomic_output(tmp_path / "file" / "below"):
        raise AssertionError
