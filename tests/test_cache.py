"""The cache is the user's alone."""

import os
import stat

import pytest

from mambar.cache import cache_directory
from mambar.errors import InputError


def test_private(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path / "cache"))
    found = cache_directory("kernels", "cpu")
    assert found == tmp_path / "cache" / "kernels" / "cpu"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="file modes of POSIX")
def test_what_others_may_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path / "cache"))
    cache_directory("kernels")
    (tmp_path / "cache" / "kernels").chmod(0o777)
    with pytest.raises(InputError, match="can be written by others"):
        cache_directory("kernels")
