"""Folders of images and masks for the tests of segmentation data."""

import io

import numpy as np
from PIL import Image

from data.pictures import encoded, photo


def png(array):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(root, files):
    """Writes {path: bytes or text} below root."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def image(seed=0, size=(12, 16)):
    return encoded(photo(*size, seed=seed), quality=90)


def values(seed=0, size=(12, 16), high=3):
    return np.random.default_rng(seed).integers(0, high, size, dtype=np.uint8)
