"""Files by relative path, in a folder or in a zip archive that is read without unpacking.

Nothing is written to disk. Links and devices in archives are skipped, and sizes are checked before and during reading.
Paths have forward slashes and stay inside the tree.
"""

import copy
import os
import stat
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath

from mambar.errors import DataError, ImageError
from mambar.image_file import MAX_BYTES, file_bytes
from mambar.image_paths import files_below, folders_in, warn_left_out
from mambar.messages import one_line

# Masks compress up to a few hundredfold, decompression bombs a thousandfold.
MAX_COMPRESSION_RATIO = 500
MAX_MEMBERS = 2_000_000


class FileTree(ABC):
    """Read access to the files of a dataset.

    Attributes:
        name: Name in messages.
    """

    name: str

    @abstractmethod
    def folders(self, path: str = "") -> list[str]:
        """Sorted names of the folders in `path`; empty where it does not exist."""

    @abstractmethod
    def files(self, path: str = "") -> list[str]:
        """Sorted paths, relative to `path`, of all files below it; hidden files are left out."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """A file's bytes; ImageError if it does not exist or is too large."""

    @abstractmethod
    def has_file(self, path: str) -> bool:
        """True if there is a file at `path`."""

    @abstractmethod
    def subtree(self, path: str) -> "FileTree":
        """The tree of a folder."""

    def text(self, path: str) -> str | None:
        """A small file's text (UTF-8, else Latin-1), None where there is no such file."""
        if not self.has_file(path):
            return None
        data = self.read(path)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return data.decode("latin-1")


def open_tree(path: Path | str) -> FileTree:
    """The tree at `path`: a folder, or a `.zip`; DataError for anything else."""
    path = Path(path).expanduser()
    if path.is_dir():
        return Directory(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return ZipArchive(path)
    reason = "is neither a folder nor a .zip" if path.exists() else "does not exist"
    raise DataError(f"data={path} {reason}; give the folder or the zip archive that holds the data.")


def single_folder(tree: FileTree) -> FileTree | None:
    """The only top-level folder, as in released archives; None where there are several, or files beside it."""
    inside = tree.folders()
    if len(inside) != 1 or any("/" not in file for file in tree.files()):
        return None
    return tree.subtree(inside[0])


class Directory(FileTree):
    """A folder on disk as a `FileTree`; links to folders are followed."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def folders(self, path: str = "") -> list[str]:
        return folders_in(self.root / path)

    def files(self, path: str = "") -> list[str]:
        return files_below(self.root / path)

    def read(self, path: str) -> bytes:
        return file_bytes(self.root / path)

    def has_file(self, path: str) -> bool:
        return (self.root / path).is_file()

    def subtree(self, path: str) -> FileTree:
        return Directory(self.root / path)


class ZipArchive(FileTree):
    """A zip archive as a `FileTree`: members are read in place; each process opens its own handle."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self.members = self._checked_members()

    def folders(self, path: str = "") -> list[str]:
        start = f"{path}/" if path else ""
        inside = (name[len(start) :] for name in self.members if name.startswith(start))
        return sorted({name.split("/")[0] for name in inside if "/" in name})

    def files(self, path: str = "") -> list[str]:
        start = f"{path}/" if path else ""
        return sorted(name[len(start) :] for name in self.members if name.startswith(start))

    def read(self, path: str) -> bytes:
        info = self.members.get(path)
        if info is None:
            raise ImageError(f"{one_line(path)} is not in {self.path}; check the archive.")
        try:
            with self._archive().open(info) as member:
                # The header may be wrong: one more byte than it states is enough to detect that.
                data = member.read(info.file_size + 1)
        # Damage and encryption show as many kinds of exception: zipfile's own, zlib's, Python's.
        except Exception as error:
            raise ImageError(f"{one_line(path)} in {self.path} cannot be read: {one_line(str(error))}.") from error
        if len(data) != info.file_size:
            raise ImageError(f"{one_line(path)} in {self.path} does not have the size that its header states.")
        return data

    def has_file(self, path: str) -> bool:
        return path in self.members

    def subtree(self, path: str) -> FileTree:
        part = copy.copy(self)
        part.name = f"{self.name}/{path}"
        part.members = {name: self.members[f"{path}/{name}"] for name in self.files(path)}
        return part

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def _archive(self) -> zipfile.ZipFile:
        # After a fork, parent and child would share the file position.
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile, ValueError) as error:
                raise DataError(f"data={self.path} is no readable zip archive: {one_line(str(error))}.") from error
        return self._opened[1]

    def _checked_members(self) -> dict[str, zipfile.ZipInfo]:
        found: dict[str, zipfile.ZipInfo] = {}
        refused: list[str] = []
        infos = self._archive().infolist()
        if len(infos) > MAX_MEMBERS:
            raise DataError(f"data={self.path} has {len(infos)} members; at most {MAX_MEMBERS} are allowed.")
        for info in infos:
            mode = info.external_attr >> 16
            plain = stat.S_IFMT(mode) in (0, stat.S_IFREG)
            parts = PurePosixPath(info.filename).parts
            inside = bool(parts) and not info.filename.startswith("/") and ".." not in parts
            if info.is_dir() or any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts):
                continue
            if not plain or not inside:
                refused.append(info.filename)
                continue
            if info.file_size > MAX_BYTES or info.file_size > MAX_COMPRESSION_RATIO * max(info.compress_size, 1000):
                raise DataError(
                    f"{one_line(info.filename)} in {self.path} unpacks from {info.compress_size} to {info.file_size} "
                    f"bytes; at most {MAX_BYTES} and {MAX_COMPRESSION_RATIO} times are read. Refused."
                )
            found["/".join(parts)] = info
        warn_left_out(refused, "members that are links, devices or outside the archive", place=self.path)
        return found
