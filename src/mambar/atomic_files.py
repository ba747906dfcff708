"""Atomic, durable file writes: after a kill or a full disk the previous content is still complete.

Order of each write: write a temporary file whose name carries the process id, fsync it, rename it, fsync its directory.
On failure the temporary is removed and DiskError is raised. Needs no torch.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mambar.errors import DiskError

_LOG = logging.getLogger("mambar")
# Bytes that are written or hashed at a time.
CHUNK_BYTES: Final = 1 << 24
_TEMPORARY: Final = re.compile(r".+\.tmp\.(\d+)$")
# A file opened for writing must be new and must not be reached through a link (both flags are POSIX only).
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """Size in bytes and sha256 of a written file."""

    size: int
    sha256: str


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileDigest:
    """Writes a new file and fsyncs it. An OSError is passed on; the caller removes the file."""
    digest = hashlib.sha256()
    written = 0
    descriptor = os.open(path, _NEW_FILE, 0o666)
    try:
        for chunk in chunks:
            digest.update(chunk)
            written += write_all(descriptor, chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileDigest(size=written, sha256=digest.hexdigest())


def write_all(descriptor: int, data: bytes | memoryview) -> int:
    """Writes all of `data`, in as many calls as the system needs, and returns its size in bytes."""
    rest = memoryview(data).cast("B")
    size = len(rest)
    while len(rest):
        count = os.write(descriptor, rest)
        if count <= 0:
            raise OSError(errno.EIO, f"{size - len(rest)} of {size} bytes were written")
        rest = rest[count:]
    return size


def fsync_directory(directory: Path) -> None:
    """Makes renames inside `directory` durable; no operation on Windows, where directories cannot be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """The temporary name of `path`, in the same directory."""
    return path.with_name(f"{path.name}.tmp.{os.getpid()}")


def write_atomically(path: Path, data: bytes) -> str:
    """Replaces the content of `path` by `data`, atomically and durably; returns the sha256 of `data`.

    A symbolic link is replaced, not followed. Raises `DiskError`; then the old file is unchanged and no temporary file
    is left.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        # Of an earlier process with the same id.
        temporary.unlink(missing_ok=True)
        digest = write_file(temporary, [data])
        temporary.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(path, len(data), error) from error
    return digest.sha256


def write_files(directory: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Writes the files by name into `directory`, each atomically; makes the directory and returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomically(directory / name, data)
    return [directory / name for name in files]


@contextlib.contextmanager
def atomic_directory(path: Path, *, size: int) -> Iterator[Path]:
    """A temporary directory that becomes `path` at the end of the block, and is removed if anything fails.

    size: bytes that the block writes, for the error message.
    """
    temporary = temporary_name(path)
    renamed = False
    try:
        temporary.mkdir()
        yield temporary
        fsync_directory(temporary)
        temporary.rename(path)
        renamed = True
        fsync_directory(path.parent)
    except BaseException as error:
        if renamed:
            with contextlib.suppress(OSError):
                path.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_error(path, size, error) from error
        raise


def remove_directory(path: Path) -> None:
    """Removes a directory. It is renamed first, so that a partly removed one never has its name."""
    temporary = temporary_name(path)
    path.rename(temporary)
    shutil.rmtree(temporary)


def is_temporary(path: Path) -> bool:
    """True if the name was made by `temporary_name`."""
    return _TEMPORARY.match(path.name) is not None


def remove_stale_temporaries(directory: Path) -> list[Path]:
    """Removes temporaries in `directory` whose process has ended; returns their paths."""
    removed = []
    for entry in sorted(directory.iterdir()) if directory.is_dir() else []:
        found = _TEMPORARY.match(entry.name)
        if found is None or _is_running(int(found.group(1))):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()
        removed.append(entry)
    if removed:
        _LOG.info("Removed %d temporary entries of ended processes in %s.", len(removed), directory)
    return removed


def disk_error(path: Path, size: int, error: OSError) -> DiskError:
    """The error of a failed write: path, bytes (0: not known), reason, what to do."""
    count = f" ({size} bytes)" if size else ""
    return DiskError(
        f"{path} could not be written{count}: {error.strerror or error}. Its previous content is intact; free some "
        "space or choose another directory, then run again (a training run: with --resume)."
    )


def _is_running(pid: int) -> bool:
    # The lock of the run allows one writer. Windows has no harmless test of a process id: all count as ended.
    if pid == os.getpid() or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
