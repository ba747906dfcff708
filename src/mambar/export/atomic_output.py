"""A file written by a library lands whole at its place, after it was checked, or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mambar.errors import DiskError, InputError


@contextlib.contextmanager
def atomic_output(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A path in a private directory beside `path`; what stands there at the end is renamed to `path`.

    An exception leaves `path` as it was. Raises `InputError` where something is in the way and `force` is not
    given, `DiskError` where the disk does not take it. A symbolic link at `path` is replaced, not followed.
    """
    path = Path(path)
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists already; choose another place or give --force.")
    if path.is_dir() and not path.is_symlink():
        raise InputError(f"{path} is a directory; give the path of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise DiskError(f"{path} could not be written: {error.strerror or error}.") from error
    with scratch as directory:
        temporary = Path(directory) / path.name
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            # A private directory's files are private; the result follows the umask like any other file.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
        except OSError as error:
            raise DiskError(f"{path} could not be written: {error.strerror or error}.") from error
