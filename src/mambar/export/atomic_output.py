"""Output files of libraries: written to a temporary path, renamed when complete and checked."""

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
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
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise DiskError(f"{path} could not be written: {error.strerror or error}.") from error
    with _removed_if_empty(made), scratch as directory:
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


@contextlib.contextmanager
def _removed_if_empty(directories: Sequence[Path]) -> Iterator[None]:
    """A context that removes the directories, the innermost first, as far as they are empty at the end."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for directory in directories:
                directory.rmdir()


@contextlib.contextmanager
def exit_at_sigterm() -> Iterator[None]:
    """A context in which SIGTERM raises `SystemExit(143)`, so that temporary files are removed.

    Does nothing outside the main thread, or if the program has a handler of its own.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
