"""The user's private cache directory: compiled kernels, converted weights."""

import os
import stat
import sys
from pathlib import Path

from mambar.errors import InputError


def cache_directory(*parts: str) -> Path:
    """A directory below MAMBAR_CACHE (default: the platform's cache place), made private to the user.

    Raises `InputError` where others may write into it: code and weights are read from there.
    """
    given = os.environ.get("MAMBAR_CACHE")
    if given:
        base = Path(given)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "mambar"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches" / "mambar"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mambar"
    directory = base.joinpath(*parts)
    for path in [base, *(base.joinpath(*parts[: index + 1]) for index in range(len(parts)))]:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(path)
    return directory


def _require_private(path: Path) -> None:
    if not hasattr(os, "getuid"):
        return
    found = path.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(
            f"The cache directory {path} can be written by others; "
            "make it yours alone (chmod 700) or set MAMBAR_CACHE to a private directory."
        )
