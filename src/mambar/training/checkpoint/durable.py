"""Writing so that a kill, a full disk or a flipped bit never costs what was there before.

Order of every publication: write under a temporary name that carries the process id → fsync the file → rename
→ fsync the directory. A failure removes the temporary and raises DiskError; it is never retried as a success.
JSON documents are *sealed*: they carry the sha256 of their own canonical text; any other bytes are refused.
Needs no torch.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mambar.errors import CheckpointError, DiskError

_LOG = logging.getLogger("mambar.training.checkpoint.durable")
PIECE: Final = 1 << 24
_TEMPORARY: Final = re.compile(r".+\.tmp\.(\d+)$")
# A file opened for writing must be new and must not be reached through a link (both flags are POSIX only).
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written: size in bytes and sha256."""

    size: int
    sha256: str


class NewerFormatError(CheckpointError):
    """A sound document of a newer format than this version reads; nothing falls back past it."""


def write_file(path: Path, pieces: Iterable[bytes | memoryview], *, size: int) -> Written:
    """Writes a new file and fsyncs it; OSError passes to the publisher, which cleans up."""
    digest = hashlib.sha256()
    written = 0
    descriptor = os.open(path, _NEW_FILE, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece).cast("B")
            digest.update(rest)
            while len(rest):
                count = os.write(descriptor, rest)
                written += count
                rest = rest[count:]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if written != size:
        raise OSError(errno.EIO, f"{written} of {size} bytes were written", str(path))
    return Written(size=written, sha256=digest.hexdigest())


def fsync_directory(directory: Path) -> None:
    """Makes renames inside `directory` durable; does nothing where directories cannot be opened (Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """The name under which `path` is written first, in the same directory."""
    return path.with_name(f"{path.name}.tmp.{os.getpid()}")


def publish_file(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`, atomically and durably; a link at `path` is replaced, never followed."""
    temporary = temporary_name(path)
    try:
        write_file(temporary, [data], size=len(data))
        temporary.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise disk_error(path, len(data), error) from error


def publish_directory(path: Path, files: "Mapping[str, Payload]") -> dict[str, Written]:
    """Makes the new directory `path` with `files`, all of it or nothing; what each file became."""
    temporary = temporary_name(path)
    written: dict[str, Written] = {}
    total = sum(payload.size for payload in files.values())
    renamed = False
    try:
        temporary.mkdir()
        for name, payload in files.items():
            written[name] = write_file(temporary / name, payload.pieces(written), size=payload.size)
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
            raise disk_error(path, total, error) from error
        raise
    return written


def remove_directory(path: Path) -> None:
    """Takes `path` away so that no half of it is ever seen under its name."""
    temporary = temporary_name(path)
    path.rename(temporary)
    shutil.rmtree(temporary)


def is_temporary(path: Path) -> bool:
    """Whether the name is one that `temporary_name` makes."""
    return _TEMPORARY.match(path.name) is not None


def sweep(directory: Path) -> list[Path]:
    """Removes temporaries that dead processes left in `directory`; returns their names."""
    removed = []
    for entry in sorted(directory.iterdir()) if directory.is_dir() else []:
        found = _TEMPORARY.match(entry.name)
        if found is None or _alive(int(found.group(1))):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()
        removed.append(entry)
    if removed:
        _LOG.info("Removed %d temporary entries of dead processes in %s.", len(removed), directory)
    return removed


def disk_error(path: Path, size: int, error: OSError) -> DiskError:
    """The one line for a write that failed: path, bytes, reason, what to do."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return DiskError(
        f"{path} could not be written ({size} bytes needed): {reason}. What was there before is intact; "
        "make room or choose another place, then go on with --resume."
    )


class Payload:
    """A file's content: its size, known beforehand, and its bytes, made when they are written."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    def pieces(self, written: Mapping[str, Written]) -> Iterator[bytes | memoryview]:
        """The bytes in pieces; `written` holds what the earlier files of the same directory became."""
        yield self.data


class SealedPayload(Payload):
    """A sealed JSON document that also lists size and sha256 of the files written before it."""

    def __init__(self, body: Mapping[str, Any], lists: Iterable[str] = ()) -> None:
        self.body = dict(body)
        self.lists = tuple(lists)
        self.files: dict[str, dict[str, Any]] = {name: {"size": "0" * 20, "sha256": "0" * 64} for name in self.lists}
        super().__init__(seal({**self.body, "files": self.files}))

    def pieces(self, written: Mapping[str, Written]) -> Iterator[bytes | memoryview]:
        """The document, complete with the files' checksums (sizes padded: the length is known beforehand)."""
        files = {name: {"size": f"{written[name].size:020d}", "sha256": written[name].sha256} for name in self.lists}
        self.data = seal({**self.body, "files": files})
        yield self.data


def seal(body: Mapping[str, Any]) -> bytes:
    """Canonical JSON text of `body` with the sha256 of itself."""
    if "sha256" in body:
        raise ValueError("A sealed document's own sha256 is written by seal(); leave the field out.")
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({**body, "sha256": digest})


def unseal(data: bytes, *, source: Path, newest: int) -> dict[str, Any]:
    """The body of a sealed document; CheckpointError with expected and found sha256 for any other bytes."""
    try:
        document = json.loads(data)
        expected = document.pop("sha256")
        version = document["format_version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{source} is damaged: it is no sealed document ({len(data)} bytes).") from None
    found = hashlib.sha256(_canonical(document)).hexdigest()
    if found != expected or _canonical({**document, "sha256": expected}) != data:
        raise CheckpointError(f"{source} is damaged: sha256 expected {expected}, found {found}.")
    if not isinstance(version, int) or version > newest:
        raise NewerFormatError(
            f"{source} has format_version {version}; this version of mambar reads up to {newest}. "
            "Install a newer mambar."
        )
    return document


def verify_file(path: Path, *, size: int, sha256: str) -> None:
    """CheckpointError with what was expected and found unless `path` has this size and sha256."""
    try:
        found_size = path.stat().st_size
        if found_size != size:
            raise CheckpointError(f"{path} is damaged: {size} bytes expected, found {found_size}.")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CheckpointError(f"{path} cannot be read: {reason}.") from None
    if digest.hexdigest() != sha256:
        raise CheckpointError(f"{path} is damaged: sha256 expected {sha256}, found {digest.hexdigest()}.")


def _canonical(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _alive(pid: int) -> bool:
    # One process writes here (the run's lock): on Windows, without a harmless probe, all count as stale.
    if pid == os.getpid() or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False
    except PermissionError:
        return True
    return True
