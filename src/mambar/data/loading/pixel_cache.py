"""A cache of decoded images of one size in memory that worker processes share."""

import mmap
import zlib

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

# CIFAR-10 takes 154 MB; larger datasets are not cached.
MAX_BYTES = 1 << 30


class PixelCache:
    """A cache of `count` images of `shape` (channels, height, width); memory is allocated as it fills.

    Forked processes share it. A pickled copy, in a spawned process, starts empty. A checksum beside each image detects
    images that another process is still writing.
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
        """The cached image as a view, or None."""
        if not self.active:
            return None
        # Zero, the initial value, means not cached.
        expected = int(self._sums[index])
        if not expected or zlib.crc32(self._pixels[index]) != expected:
            return None
        return torch.from_numpy(self._pixels[index])

    def put(self, index: int, pixels: UInt8[Tensor, "channels height width"]) -> None:
        """Stores a copy; an image of another shape is not stored."""
        if self.active and tuple(pixels.shape) == self.shape:
            self._pixels[index] = pixels.numpy()
            self._sums[index] = zlib.crc32(self._pixels[index])

    def __reduce__(self) -> tuple[type["PixelCache"], tuple[int, tuple[int, int, int]]]:
        return PixelCache, (self.count, self.shape)
