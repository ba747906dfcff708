"""Random numbers by name: every draw of the data path has a key, and no global generator is read or moved.

A key is 63 bits of the sha256 of what the draw is for: `key(seed, "augment", epoch, index, repeat)`. Hence a
sample's pixels do not depend on which worker or process makes them, nor on what was drawn before, and a run
that is stopped and resumed needs to store no generator's state.
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
    """A numpy generator (Philox) at the start of the key's own stream."""
    return np.random.Generator(np.random.Philox(key=key))


def torch_generator(key: int) -> torch.Generator:
    """A CPU torch generator at the start of the key's own stream."""
    return torch.Generator().manual_seed(key)


def permutation(length: int, key: int) -> Int64[np.ndarray, "length"]:
    """A random order of 0 … length-1.

    It sorts raw Philox words, whose values are fixed by the algorithm; `Generator.permutation` may change
    from one numpy version to the next, and a resumed run must see the same order.
    """
    words = np.random.Philox(key=key).random_raw(length)
    return np.argsort(words, kind="stable").astype(np.int64)


@contextmanager
def seeded_globals(key: int) -> Iterator[None]:
    """Within the block python's, numpy's and torch's (CPU) global generators follow the key.

    Afterwards each goes on as if nothing had happened. For library code that draws from them (timm's
    RandAugment). CUDA generators are not touched.
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
