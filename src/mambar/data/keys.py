"""Keyed random numbers: each draw has its own key, and global generators are neither read nor advanced.

A key is 63 bits of the sha256 of the purpose of the draw: `key(seed, "augment", epoch, index, repeat)`. A sample's
pixels therefore depend neither on the worker that computes them nor on earlier draws, and a resumed run needs no
stored generator state.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Int64

_MASK = (1 << 63) - 1


def key(seed: SupportsIndex, kind: str, *parts: SupportsIndex | str) -> int:
    """63 bits of sha256 over (seed, kind, parts): equal arguments give an equal key on every machine."""
    words = [index(seed), kind, *(part if isinstance(part, str) else index(part) for part in parts)]
    text = json.dumps(words, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") & _MASK


def numpy_generator(key: int) -> np.random.Generator:
    """A numpy generator (Philox) seeded with the key."""
    return np.random.Generator(np.random.Philox(key=key))


def torch_generator(key: int) -> torch.Generator:
    """A CPU torch generator seeded with the key."""
    return torch.Generator().manual_seed(key)


def permutation(length: int, key: int) -> Int64[np.ndarray, "length"]:
    """A random permutation of 0 … length-1.

    It sorts raw Philox words, whose values the algorithm fixes; `Generator.permutation` may change between numpy
    versions, and a resumed run must use the same order.
    """
    words = np.random.Philox(key=key).random_raw(length)
    return np.argsort(words, kind="stable").astype(np.int64)


@contextmanager
def seeded_globals(key: int) -> Iterator[None]:
    """Seeds the global generators of python, numpy and torch (CPU) with the key inside the block, then restores them.

    For library code that draws from them, such as timm's RandAugment. CUDA generators are not changed.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch_state = torch.default_generator.get_state()
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002
    torch.default_generator.manual_seed(key)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.default_generator.set_state(torch_state)
