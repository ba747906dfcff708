"""Decoded images of one size, kept in memory that worker processes share: each is decoded once in a run."""

import mmap
import zlib

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

# CIFAR-10 takes 154 MB; a set of photographs shall not fill the machine.
MAX_BYTES = 1 << 30


class PixelCache:
    """Room for `count` images of `shape` (channels, height, width); it takes memory only as it fills.

    Processes forked from this one read and fill the same room. Pickled (to a spawned process), it starts empty there.
    An image lies beside its checksum, so one that another process is still writing is not taken for whole.
    """

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self.count, self.shape = count, shape
        size = int(np.prod(shape))
        self.active = 0 < count * size <= MAX_BYTES
        if self.active:
            # Anonymous memory, not a file in /dev/shm, which is small in many containers.
            self._pixels = np.frombuffer(mmap.mmap(-1, count * size), np.uint8).reshape(count, *shape)
            self._sums = np.frombuffer(mmap.mmap(-1, count * 4), np.uint32)

    def get(self, index: int) -> UInt8[Tensor, "channels height width"] | None:
        """The image that was put there, as a view; None if there is none."""
        if not self.active:
            return None
        # Zero, as the memory begins, stands for none.
        expected = int(self._sums[index])
        if not expected or zlib.crc32(self._pixels[index]) != expected:
            return None
        return torch.from_numpy(self._pixels[index])

    def put(self, index: int, pixels: UInt8[Tensor, "channels height width"]) -> None:
        """Keeps a copy; an image of another shape is not kept."""
        if self.active and tuple(pixels.shape) == self.shape:
            self._pixels[index] = pixels.numpy()
            self._sums[index] = zlib.crc32(self._pixels[index])

    def __reduce__(self) -> tuple[type["PixelCache"], tuple[int, tuple[int, int, int]]]:
        return PixelCache, (self.count, self.shape)
