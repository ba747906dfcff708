"""Finds image files: in folders with their sub-folders, and by patterns. Needs no torch."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mambar.errors import DataError, InputError
from mambar.image_file import IMAGE_SUFFIXES
from mambar.messages import one_line

logger = logging.getLogger("mambar.images")


def folders_in(root: Path) -> list[str]:
    """Sorted names of the folders in `root` except hidden ones; empty where there is no such folder."""
    try:
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unlisted(root, error) from error


def files_below(root: Path) -> list[str]:
    """Sorted paths, relative to `root` with forward slashes, of all files below it except hidden ones.

    Links to folders are followed. DataError for a link to one of its own parent folders, and for a folder that cannot
    be listed.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise _unlisted(Path(error.filename), error)

    found = []
    # Folder → the real paths of the folders from `root` down to it.
    reached: dict[str, tuple[Path, ...]] = {str(root): (root.resolve(),)}
    for place, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        above = reached.pop(place)
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for path in (Path(place, folder) for folder in folders):
            real = path.resolve() if path.is_symlink() else above[-1] / path.name
            if any(folder.is_relative_to(real) for folder in above):
                raise DataError(f"{one_line(str(path))} links to a folder that contains it; remove the link.")
            reached[os.path.join(place, path.name)] = (*above, real)  # noqa: PTH118
        below = Path(place).relative_to(root)
        found += [(below / file).as_posix() for file in files if not file.startswith(".")]
    return sorted(found)


def is_image_name(name: str) -> bool:
    """True if the suffix of the name is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def select_images(names: Iterable[str], *, place: object) -> list[str]:
    """The names of images; the others are counted by suffix and named in one warning (see `warn_left_out`)."""
    images: list[str] = []
    others: list[str] = []
    for name in names:
        (images if is_image_name(name) else others).append(name)
    warn_left_out(others, "files that are not PNG, JPEG or WEBP", place=place)
    return images


def warn_left_out(names: Sequence[str], kind: str, *, place: object) -> None:
    """Logs how many files of a kind are left out, by suffix, with the name of one; nothing without a `place`."""
    if names and place is not None:
        counts = Counter(os.path.splitext(name)[1].lower() or "without suffix" for name in names)  # noqa: PTH122
        listed = ", ".join(f"{count} {one_line(suffix, limit=20)}" for suffix, count in counts.most_common(6))
        example = one_line(min(names))
        logger.warning("%s: %s are left out: %d (%s), such as %r.", place, kind, len(names), listed, example)


def find_images(paths: Iterable[str | Path], *, option: str = "IMAGE") -> list[Path]:
    """The image files of files, folders and patterns such as `photos/*.jpg`, each once, in the order of `paths`.

    Folders are searched with their sub-folders. A file is taken whatever its suffix. InputError for a path that does
    not exist, and for a folder or a pattern without an image.
    """
    found: dict[Path, None] = {}
    for path in (Path(path).expanduser() for path in paths):
        if path.is_dir():
            matches = files_below(path)
        elif not os.path.lexists(path) and glob.has_magic(str(path)):
            # Not Path.glob, which takes no absolute pattern.
            matches = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
        else:
            found[path] = None
            continue
        if not any(map(is_image_name, matches)):
            raise InputError(
                f"{option} {one_line(str(path))} holds no image; give files, folders or patterns of PNG, JPEG or WEBP."
            )
        folder = path if path.is_dir() else Path()
        found.update((folder / name, None) for name in select_images(matches, place=path))
    return list(found)


def _unlisted(folder: Path, error: OSError) -> DataError:
    return DataError(f"{one_line(str(folder))} cannot be listed: {str(error.strerror).lower()}; check its permissions.")
