"""The user's private cache directory, and the compiled kernels kept in it between processes."""

import functools
import hashlib
import logging
import os
import stat
import sys
import tempfile
from pathlib import Path

from mambar.errors import InputError

_log = logging.getLogger("mambar.cache")
_DIGEST_BYTES = 32
# Platform → environment variable of the cache directory, and its default below the home directory.
_PLACES = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}


def cache_directory(*parts: str) -> Path:
    """A directory below MAMBAR_CACHE (default: the platform's cache directory) that only the user can write.

    Raises `InputError` if there is none: the home directory is unknown or read-only, or other users can write to the
    directory. Code and weights are read from there.
    """
    try:
        base = _base()
        directory = base.joinpath(*parts)
        for path in [base, *(base.joinpath(*parts[: index + 1]) for index in range(len(parts)))]:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The base may be a link of the user; a link below it can lead to a directory of another user.
            _require_private(path, path.stat() if path == base else path.lstat())
    except (OSError, RuntimeError) as error:
        raise InputError(f"No cache directory ({error}); set MAMBAR_CACHE to a writable directory.") from error
    return directory


def optional_cache_directory(*parts: str) -> Path | None:
    """The same directory, or None after one warning, for callers that also work without a cache."""
    try:
        return cache_directory(*parts)
    except InputError as error:
        _warn_once(f"Nothing is cached: {error}")
        return None


def read_object(folder: str, key: str) -> bytes | None:
    """The object code stored under a key of a folder; None if it is missing or damaged."""
    directory = optional_cache_directory(folder)
    try:
        content = (directory / f"{key}.object").read_bytes() if directory else b""
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return code if code and digest == _digest(key, code) else None


def write_object(folder: str, key: str, code: bytes) -> None:
    """Stores object code under a key atomically: readers see the whole file or none. A failure is only logged."""
    directory = optional_cache_directory(folder)
    if directory is None:
        return
    try:
        descriptor, name = tempfile.mkstemp(dir=directory, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_digest(key, code) + code)
            Path(name).replace(directory / f"{key}.object")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        _warn_once(f"Compiled kernels are not cached in {directory}: {error.strerror}.")


def _base() -> Path:
    given = os.environ.get("MAMBAR_CACHE")
    if given:
        return Path(given).expanduser()
    variable, default = _PLACES.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    folder = os.environ.get(variable)
    return (Path(folder) if folder else Path.home() / default) / "mambar"


def _require_private(path: Path, found: os.stat_result) -> None:
    if not hasattr(os, "getuid"):
        return
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(
            f"The cache directory {path} can be written by others or is a link; "
            "make it a directory of your own (chmod 700) or set MAMBAR_CACHE to a private directory."
        )


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
