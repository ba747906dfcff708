"""Writes class folders as tar shards with an index."""

import json
import logging
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from mambar.atomic_files import atomic_directory
from mambar.data.classification.folder import ImageFolder, folder_splits
from mambar.data.dataset import SPLITS
from mambar.data.keys import key, permutation
from mambar.data.shards.index import ShardIndex, index_path, save_index, shard_record
from mambar.errors import DataError, InputError
from mambar.image_file import JPEG_SUFFIXES, MAX_BYTES
from mambar.messages import one_line

logger = logging.getLogger("mambar.data")

_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """Summary of what `pack_folder` wrote.

    Attributes:
        images: Number of images of each split.
        shards: Number of tar files.
        bytes: Total size of the tar files.
        unreadable: Number of images that could not be read and were packed empty.
    """

    images: dict[str, int]
    shards: int
    bytes: int
    unreadable: int


def pack_folder(
    folder: Path | str,
    out: Path | str,
    *,
    shard_bytes: int = 256_000_000,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PackResult:
    """Writes the splits of a folder of class sub-folders as tar shards into the new folder `out`.

    Files are copied byte for byte, in random order within the split, so that streaming readers get mixed classes; the
    index keeps the numbering of the folder. A file that cannot be opened is packed empty. `out` is written atomically.
    `progress(done, total)` is called for each image.
    """
    source, target = Path(folder).expanduser(), Path(out).expanduser()
    if shard_bytes < _BLOCK:
        raise InputError(f"shard_bytes={shard_bytes} is too small for a tar file; use at least a few million.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"out={target} exists already; choose a new or empty folder.")
    if target.resolve().is_relative_to(source.resolve()):
        raise DataError(f"out={target} is inside data={source}; choose a folder outside it.")
    splits = [*SPLITS, *(["test"] if source.is_dir() and "test" in folder_splits(source) else [])]
    parts = [ImageFolder(source, split, val_fraction=val_fraction, split_seed=split_seed) for split in splits]
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(target, size=0) as temporary:
        packed = _pack(parts, temporary, shard_bytes, progress or (lambda done, total: None))
        if target.exists():
            target.rmdir()
    return packed


def _pack(parts: list[ImageFolder], out: Path, shard_bytes: int, progress: Callable[[int, int], None]) -> PackResult:
    total, done, unreadable, size, shards = sum(len(part) for part in parts), 0, 0, 0, 0
    for part in parts:
        writer = _Writer(out, part.split, shard_bytes)
        for position, index in enumerate(permutation(len(part), key(0, "pack", part.split))):
            data = _bytes_of(part.path(int(index)))
            unreadable += not data
            writer.add(position, int(index), data, part)
            done += 1
            progress(done, total)
        index = writer.finish(part)
        save_index(index_path(out, part.split), index)
        size += sum(file.size for file in index.shards)
        shards += len(index.shards)
    (out / "classes.json").write_text(json.dumps(parts[0].folder_names), encoding="utf-8")
    images = {part.split: len(part) for part in parts}
    return PackResult(images=images, shards=shards, bytes=size, unreadable=unreadable)


class _Writer:
    """Writes tars of at most `shard_bytes` and records the position of each image."""

    def __init__(self, out: Path, split: str, shard_bytes: int) -> None:
        self.out = out
        self.split = split
        self.shard_bytes = shard_bytes
        self.paths: list[Path] = []
        self.tar: tarfile.TarFile | None = None
        # One (index, shard, offset, size, crc, label) per image.
        self.rows: list[tuple[int, ...]] = []

    def add(self, position: int, index: int, data: bytes, part: ImageFolder) -> None:
        tar = self.tar
        if tar is None or tar.offset >= self.shard_bytes:
            tar = self._next()
        suffix = part.path(index).suffix.lower()
        suffix = ".jpg" if suffix in JPEG_SUFFIXES else suffix
        stem = f"{position:08d}"
        start = self._append(tar, f"{stem}{suffix}", data)
        label = int(part.labels[index])
        self._append(tar, f"{stem}.cls", str(label).encode())
        self.rows.append((index, len(self.paths) - 1, start, len(data), zlib.crc32(data), label))

    def finish(self, part: ImageFolder) -> ShardIndex:
        self._close()
        rows, shards = [row[1:] for row in sorted(self.rows)], [shard_record(path) for path in self.paths]
        return ShardIndex.from_rows(rows, classes=part.folder_names, shards=shards, paths=part.paths)

    def _append(self, tar: tarfile.TarFile, name: str, data: bytes) -> int:
        # No owner, time or mode: equal images give equal bytes.
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, BytesIO(data))
        return tar.offset - -(-len(data) // _BLOCK) * _BLOCK

    def _next(self) -> tarfile.TarFile:
        self._close()
        path = self.out / f"{self.split}-{len(self.paths):06d}.tar"
        self.paths.append(path)
        self.tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        return self.tar

    def _close(self) -> None:
        if self.tar is None:
            return
        self.tar.close()
        with self.paths[-1].open("rb") as stream:
            os.fsync(stream.fileno())
        self.tar = None


def _bytes_of(path: Path) -> bytes:
    try:
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            return path.read_bytes()
        reason = "not a regular file, or too large"
    except OSError as error:
        reason = str(error.strerror)
    logger.warning("packed empty: %s cannot be opened: %s", one_line(str(path)), reason)
    return b""
