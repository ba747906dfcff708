"""Photographs that are installed with scikit-image, for figures and reports without a download."""

import importlib.util
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from mambar.data.loading.images import read_image
from mambar.errors import DataError
from mambar.messages import needs_package

_FILES = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "hubble": "hubble_deep_field.jpg",
    "tissue": "ihc.png",
    "retina": "retina.jpg",
    "camera": "camera.png",
    "coins": "coins.png",
    "moon": "moon.png",
}


def photographs(*names: str) -> dict[str, UInt8[Tensor, "3 height width"]]:
    """The named photographs, or all of them, by name; sizes differ.

    They are read from the folder of scikit-image (the last three are gray). One that a build of scikit-image does not
    contain is left out, unless it is named.
    """
    for name in names:
        if name not in _FILES:
            raise DataError(f"photograph {name!r} is unknown; there are {', '.join(_FILES)}.")
    folder = _folder()
    found = {name: folder / _FILES[name] for name in names or _FILES}
    missing = [name for name, path in found.items() if not path.is_file()]
    if missing and (names or len(missing) == len(found)):
        raise DataError(f"photograph {missing[0]!r} is not in {folder}; install scikit-image from its wheel.")
    return {name: read_image(path) for name, path in found.items() if name not in missing}


def _folder() -> Path:
    # The package is located, not imported: that would take seconds.
    specification = importlib.util.find_spec("skimage")
    if specification is None or specification.origin is None:
        raise DataError(needs_package("data=photographs", "scikit-image"))
    return Path(specification.origin).parent / "data"
