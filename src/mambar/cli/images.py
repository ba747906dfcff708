"""Image arguments of a command: files, folders and patterns. An unreadable file does not discard the others."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mambar.cli.arguments import print_json
from mambar.cli.console import say
from mambar.errors import ImageError, InputError
from mambar.image_paths import find_images

logger = logging.getLogger("mambar.cli")

Result = TypeVar("Result")


def process_images(
    files: Sequence[Path], process: Callable[[Path], Result], show: Callable[[Path, Result], None]
) -> tuple[dict[Path, Result], dict[Path, ImageError]]:
    """The results of the readable images, each shown at once, and the errors of the others, logged at once."""
    found: dict[Path, Result] = {}
    errors: dict[Path, ImageError] = {}
    for file in files:
        try:
            found[file] = process(file)
        except ImageError as error:
            errors[file] = error
            # The error of a single image ends the command.
            if len(files) > 1:
                logger.error("%s", error)
        else:
            show(file, found[file])
    return found, errors


def raise_unreadable(errors: Sequence[ImageError], total: int) -> None:
    """Raises ImageError if there are errors: the error itself for a single image, else their number."""
    if len(errors) == total == 1:
        raise errors[0]
    if errors:
        raise ImageError(f"{len(errors)} of {total} images could not be read; replace or remove them.")


class ImageResult(Protocol):
    """What a model found in an image: a `Segmentation`, or `Detections`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        ...

    def save(self, directory: Path, stem: str, *, force: bool = False) -> list[Path]:
        """Writes a picture, the first of the paths, and other files."""
        ...


Found = TypeVar("Found", bound=ImageResult)


def save_results(
    images: Sequence[str],
    load: Callable[[], Callable[[Path], Found]],
    describe: Callable[[Found], str],
    *,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Processes image arguments with the function that `load` returns, and saves the result of each below `out`.

    Prints a line, or with `as_json` one object, of all of them. Raises ImageError if an image could not be read.
    """
    files = find_images(images)
    names = output_names(files)
    process = load()
    written: dict[Path, list[Path]] = {}

    def process_file(path: Path) -> Found:
        result = process(path)
        written[path] = result.save(out / names[path].parent, names[path].name, force=force)
        return result

    def show(path: Path, result: Found) -> None:
        if not as_json:
            say(f"{path}: {describe(result)} → {written[path][0]}")

    found, errors = process_images(files, process_file, show)
    if as_json:
        content = {
            str(path): {**each.to_dict(), "files": list(map(str, written[path]))} for path, each in found.items()
        }
        print_json({**content, **{str(path): {"error": str(error)} for path, error in errors.items()}})
    raise_unreadable(list(errors.values()), len(files))


def output_names(files: Sequence[Path]) -> dict[Path, Path]:
    """The output path without suffix of each image, with its folder if two images have the same name."""
    names = {file: Path(file.stem) for file in files}
    if len(set(names.values())) < len(files):
        top = Path(os.path.commonpath([file.absolute().parent for file in files]))
        names = {file: file.absolute().relative_to(top).with_suffix("") for file in files}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        raise InputError(f"two images are named {repeated[0]}; process them separately, each with its own --out.")
    return names
