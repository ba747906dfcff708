"""Output files of libraries: written to a temporary path, renamed when complete and checked."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mambar.errors import DiskError, InputError


@contextlib.contextmanager
def atomic_output(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A context with a temporary path beside `path`; on success, the file there is renamed to `path`.

    An exception leaves `path` unchanged. Raises `InputError` if `path` exists and `force` is not given, `DiskError`
    if it cannot be written. A symbolic link at `path` is replaced, not followed.
    """
    path = Path(path)
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists already; choose another path or give --force.")
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
            # Files made in a temporary directory are private; the result follows the umask.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
        except OSError as error:
            raise DiskError(f"{path} could not be written: {error.strerror or error}.") from error
