"""Object code kept between processes, in the user's private cache directory."""

import hashlib
import logging
import os
import tempfile
from pathlib import Path

from mambar.cache import cache_directory
from mambar.errors import InputError

_log = logging.getLogger("mambar.ops.llvm")
_DIGEST_BYTES = 32


def read_object(key: str) -> bytes | None:
    """The object code kept under a key; None where there is none, or where it is damaged."""
    path = _path(key)
    try:
        content = path.read_bytes() if path else b""
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if not code or digest != _digest(key, code):
        return None
    return code


def write_object(key: str, code: bytes) -> None:
    """Keeps object code under a key, in one step: a reader sees all of it or nothing. Failing is not an error."""
    path = _path(key)
    if path is None:
        return
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_digest(key, code) + code)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        _log.warning("Compiled kernels are not kept for the next process: %s", error)


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()


def _path(key: str) -> Path | None:
    try:
        return cache_directory("llvm") / f"{key}.object"
    except (OSError, InputError) as error:
        _log.warning("Compiled kernels are neither read nor kept: %s", error)
        return None
