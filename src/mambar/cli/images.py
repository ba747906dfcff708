"""Image arguments of a command: files, folders and patterns. An unreadable file does not discard the others."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mambar.errors import ImageError

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
