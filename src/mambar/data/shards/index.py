"""The index of tar shards: the position of each image, for random access.

The file `SPLIT.index.npz` holds plain arrays, no pickle. Tars are not extracted: only regular files are listed, names
are used as keys only, and offsets are checked against the file size.
"""

import hashlib
import io
import json
import re
import tarfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt32

from mambar.atomic_files import write_atomically
from mambar.data.dataset import SPLIT_NAMES
from mambar.data.names import PackedNames
from mambar.errors import DataError
from mambar.image_file import IMAGE_SUFFIXES, MAX_BYTES
from mambar.image_paths import warn_left_out
from mambar.messages import one_line

FORMAT_VERSION = 1
# The arrays with one number for each image.
_COLUMNS = {"shard": np.int32, "offset": np.int64, "size": np.int64, "crc": np.uint32, "labels": np.int64}
_ARRAYS = ("meta", "path_text", "path_offsets", *_COLUMNS)
_MAX_MEMBERS = 50_000_000
_MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class ShardFile:
    """Name, size in bytes and checksum of a tar file."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """All samples of a split: image i is `size[i]` bytes at `offset[i]` of shard number `shard[i]`."""

    classes: tuple[str, ...]
    shards: tuple[ShardFile, ...]
    shard: Int32[np.ndarray, "samples"]
    offset: Int64[np.ndarray, "samples"]
    size: Int64[np.ndarray, "samples"]
    crc: UInt32[np.ndarray, "samples"]
    labels: Int64[np.ndarray, "samples"]
    paths: PackedNames

    def __post_init__(self) -> None:
        parts = (self.shard, self.offset, self.size, self.crc, self.labels, self.paths)
        lengths = {len(part) for part in parts}
        if len(lengths) != 1 or 0 in lengths or not self.shards or not self.classes:
            raise DataError("its arrays are empty or differ in length.")
        if not 0 <= self.shard.min() <= self.shard.max() < len(self.shards):
            raise DataError("it names a shard that it does not list.")
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise DataError(f"it has labels that are not among its {len(self.classes)} classes.")
        if self.offset.min() < 0 or self.size.min() < 0 or self.size.max() > MAX_BYTES:
            raise DataError("an offset or a size is out of range.")
        ends = np.array([file.size for file in self.shards], dtype=np.int64)[self.shard]
        if (self.offset > ends - self.size).any():
            raise DataError("an image extends beyond the end of its shard.")

    @classmethod
    def from_rows(
        cls, rows: list[tuple[int, ...]], *, classes: tuple[str, ...], shards: list[ShardFile], paths: PackedNames
    ) -> "ShardIndex":
        """The index of images given as (shard, offset, size, crc, label)."""
        numbers = zip(_COLUMNS.items(), np.array(rows, dtype=np.int64).T, strict=True)
        columns: dict[str, Any] = {name: column.astype(kind) for (name, kind), column in numbers}
        return cls(classes=classes, shards=tuple(shards), paths=paths, **columns)

    def check_files(self, root: Path) -> None:
        """DataError if a shard is missing, or has another size than when the index was built."""
        for shard in self.shards:
            path = root / shard.name
            actual = path.stat().st_size if path.is_file() else None
            if actual != shard.size:
                found = "is missing" if actual is None else f"has {actual} bytes"
                raise DataError(
                    f"{path} {found}, its index says {shard.size} bytes; copy it again, or remove the index file "
                    "to have it built again."
                )


def index_path(root: Path, split: str) -> Path:
    """The index file of a split."""
    return root / f"{split}.index.npz"


def shard_files(root: Path, split: str) -> list[Path]:
    """The sorted tar files of a split: those whose names contain one of the split's names as a word."""
    for name in SPLIT_NAMES[split]:
        word = re.compile(rf"(^|[^a-z]){name}([^a-z].*)?\.tar", re.IGNORECASE)
        files = sorted(path for path in root.glob("*.tar") if word.search(path.name) and path.is_file())
        if files:
            return files
    return []


def shard_splits(root: Path) -> dict[str, str]:
    """Split → the name of its first tar file. Test files are those of "val" if there are no validation files."""
    files = {split: shard_files(root, split) for split in SPLIT_NAMES}
    if files["test"] == files["val"]:
        del files["test"]
    return {split: found[0].name for split, found in files.items() if found}


def save_index(file: Path, index: ShardIndex) -> None:
    """Writes the index file atomically."""
    meta = {
        "format_version": FORMAT_VERSION,
        "classes": index.classes,
        "shards": [asdict(shard) for shard in index.shards],
    }
    arrays = {name: getattr(index, name) for name in _COLUMNS}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    stream = io.BytesIO()
    np.savez(stream, path_text=index.paths.text, path_offsets=index.paths.offsets, **arrays)
    write_atomically(file, stream.getvalue())


def read_index(file: Path) -> ShardIndex:
    """Reads an index file; DataError if it is damaged or newer than this version."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays: dict[str, Any] = {name: stored[name] for name in _ARRAYS}
        meta = json.loads(arrays["meta"].tobytes())
        if meta["format_version"] > FORMAT_VERSION:
            raise DataError(f"{file} is of a newer format ({meta['format_version']}); update mambar.")
        shards = tuple(
            ShardFile(str(shard["name"]), int(shard["size"]), str(shard["sha256"])) for shard in meta["shards"]
        )
        for shard in shards:
            if PurePosixPath(shard.name).name != shard.name or "\\" in shard.name or "\0" in shard.name:
                raise DataError(f"{file} names a shard outside its folder: {one_line(shard.name)!r}.")
        return ShardIndex(
            classes=tuple(str(name) for name in meta["classes"]),
            shards=shards,
            paths=PackedNames(arrays["path_text"].astype(np.uint8), arrays["path_offsets"].astype(np.int64)),
            **{name: arrays[name].astype(kind) for name, kind in _COLUMNS.items()},
        )
    # A damaged zip, array, or JSON text raises one of many.
    except Exception as error:
        if isinstance(error, DataError) and str(file) in str(error):
            raise
        raise DataError(
            f"{file} is not a usable shard index: {one_line(str(error)).rstrip('.')}; remove it, and it is built again."
        ) from error


def build_index(root: Path, files: list[Path]) -> ShardIndex:
    """Builds the index of WebDataset tars by reading them once.

    Class names are the list in the folder's `classes.json`, or else numbers.
    """
    shards: list[ShardFile] = []
    rows: list[tuple[int, ...]] = []
    names: list[str] = []
    for number, path in enumerate(files):
        shards.append(shard_record(path))
        with path.open("rb") as stream:
            for name, offset, size, label in _samples(path):
                stream.seek(offset)
                rows.append((number, offset, size, zlib.crc32(stream.read(size)), label))
                names.append(name)
    if not rows:
        raise DataError(f"the tar files in {root} hold no images (KEY.jpg, png or webp beside KEY.cls).")
    classes = _class_names(root, max(row[4] for row in rows) + 1)
    return ShardIndex.from_rows(rows, classes=classes, shards=shards, paths=PackedNames.from_names(names))


def tar_members(path: Path) -> list[tuple[str, int, int]]:
    """(name, offset, size) of a tar's regular members; DataError for links, devices, sparse and oversized files."""
    total = path.stat().st_size
    members: list[tuple[str, int, int]] = []
    place = -1
    try:
        # "r:" opens uncompressed tars only; offsets into compressed ones are useless.
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                # A negative size would make tarfile loop.
                if member.size < 0 or member.offset_data <= place or len(members) > _MAX_MEMBERS:
                    raise DataError(f"{path} is not a valid tar file: its members overlap.")
                place = member.offset_data
                if member.isdir():
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise DataError(f"{path} holds {one_line(member.name)!r}, which is not a regular file.")
                if member.size > MAX_BYTES or place + member.size > total:
                    raise DataError(f"{path}: {one_line(member.name)!r} of {member.size} bytes is too large.")
                members.append((member.name, place, member.size))
    except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a plain tar file: {one_line(str(error))}.") from error
    return members


def _samples(path: Path) -> list[tuple[str, int, int, int]]:
    """(name, offset, size, label) of every image in a tar."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    others = []
    with path.open("rb") as stream:
        for name, offset, size in tar_members(path):
            folder, _, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            known = f"{folder}/{stem}" if folder else stem
            is_image, is_label = f".{extension.lower()}" in IMAGE_SUFFIXES, extension == "cls"
            if (is_image and known in images) or (is_label and known in labels):
                raise DataError(f"{path} holds the sample {one_line(known)!r} twice.")
            if is_image:
                images[known] = (name, offset, size)
            elif not is_label:
                others.append(name)
            else:
                stream.seek(offset)
                labels[known] = _label(stream.read(min(size, 32)), path, name)
    warn_left_out(others, "members that are neither an image (PNG, JPEG, WEBP) nor a label", place=path)
    warn_left_out([f"{each}.cls" for each in labels if each not in images], "labels without an image", place=path)
    for known in images:
        if known not in labels:
            raise DataError(f"{path}: image {one_line(known)!r} has no label; add {one_line(known)}.cls.")
    return [(*images[known], labels[known]) for known in images]


def _label(text: bytes, path: Path, name: str) -> int:
    try:
        label = int(text.decode("ascii"))
    except ValueError:
        label = -1
    if not 0 <= label < _MAX_CLASSES:
        raise DataError(
            f"{path}: {one_line(name)!r} holds {one_line(repr(text))}, not a label, which is a whole number from 0."
        )
    return label


def shard_record(path: Path) -> ShardFile:
    """A tar file's name, size and checksum."""
    with path.open("rb") as stream:
        return ShardFile(path.name, path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def _class_names(root: Path, count: int) -> tuple[str, ...]:
    file = root / "classes.json"
    if not file.is_file():
        return tuple(str(number) for number in range(count))
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is not a JSON list of class names: {one_line(str(error))}.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) < count:
        raise DataError(f"{file} is not a JSON list of at least {count} class names.")
    return tuple(names)
