"""Many strings in one array.

Worker processes copy the memory page of every Python string whose reference count they change; arrays stay shared.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int64, UInt8


class PackedNames:
    """An immutable sequence of strings, stored as UTF-8 bytes and offsets."""

    def __init__(self, text: UInt8[np.ndarray, "bytes"], offsets: Int64[np.ndarray, "ends"]) -> None:
        self.text = text
        self.offsets = offsets

    @classmethod
    def from_names(cls, names: Iterable[str]) -> "PackedNames":
        """The packed names; undecodable bytes in file names are preserved."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(name) for name in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} names; there is no index {index}.")
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.text[start:end].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
