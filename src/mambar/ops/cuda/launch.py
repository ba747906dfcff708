"""Launches compiled kernels on PyTorch's current stream, with one cached plan per tensor layout.

A launch from Python takes noticeable time at small batch sizes. A `LaunchPlan` holds everything that depends on the
layout of the tensors; a launch then only reads their addresses.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambar.ops.cuda.program import core, load_kernel

# The value of the SCALAR macro for each dtype of the activations.
SCALAR_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Bytes of one asynchronous copy (cp.async).
COPY_BYTES = 16


class TensorLayout(NamedTuple):
    """Memory layout of a tensor, the cache key of launch plans."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    misalignment: int
    """Address modulo 16 bytes."""
    dtype: torch.dtype
    device: int

    @staticmethod
    def of(tensor: Tensor) -> "TensorLayout":
        """The layout of a GPU tensor."""
        return TensorLayout(
            tensor.shape, tensor.stride(), tensor.data_ptr() % COPY_BYTES, tensor.dtype, tensor.get_device()
        )

    @property
    def channels(self) -> int:
        """The size of the last dimension."""
        return self.shape[-1]

    @property
    def batch_time_strides(self) -> tuple[int, int]:
        """Strides over batch and time, in elements."""
        return self.strides[-3], self.strides[-2]

    @property
    def batch_time_direction_strides(self) -> tuple[int, int, int]:
        """Strides over batch, time and direction; the last is 0 for a tensor of one direction."""
        return *self.batch_time_strides, self.strides[0] if len(self.shape) == 4 else 0

    def is_vectorizable(self, count: int) -> bool:
        """True if rows consist of whole, aligned groups of `count` adjacent channels."""
        size = self.dtype.itemsize
        inner = zip(self.shape[:-1], self.strides[:-1], strict=True)
        aligned = self.misalignment % (count * size) == 0 and self.channels % count == 0
        return aligned and all(length == 1 or stride % count == 0 for length, stride in inner)

    @property
    def is_copy_aligned(self) -> bool:
        """True if rows consist of whole, aligned units of 16 bytes."""
        return self.is_vectorizable(COPY_BYTES // self.dtype.itemsize)


def channels_per_load(wanted: int, *layouts: TensorLayout | None) -> int:
    """The number of adjacent channels that one load can read from all tensors: `wanted`, half of it, … or 1."""
    while wanted > 1 and not all(layout is None or layout.is_vectorizable(wanted) for layout in layouts):
        wanted //= 2
    return wanted


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """A launch without tensor addresses: kernel, grid, and the scalar arguments after the pointers."""

    device: int
    kernel: Any
    settings: Any
    scalars: tuple[int | float, ...]
    buffer_sizes: tuple[int, ...] = ()
    """Sizes of the buffers that the caller allocates for the kernel."""


def plan(
    source: str,
    function: str,
    device: int,
    *,
    grid: tuple[int, int, int],
    block: int,
    scalars: tuple[int | float, ...],
    shared: int = 0,
    buffer_sizes: tuple[int, ...] = (),
    macros: Mapping[str, int],
) -> LaunchPlan:
    """Compiles `function` of `source`.cu and returns its launch plan; a macro that is a bool is defined as 0 or 1."""
    defined = tuple(sorted((name, int(value)) for name, value in macros.items()))
    kernel = load_kernel(source, function, device, shared, defined)
    settings = core().LaunchConfig(grid=grid, block=block, shmem_size=shared)
    return LaunchPlan(device=device, kernel=kernel, settings=settings, scalars=scalars, buffer_sizes=buffer_sizes)


def launch(prepared: LaunchPlan, *tensors: Tensor | None) -> None:
    """Launches the kernel; integers are passed as 64-bit integers, None as a null pointer."""
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    if torch.cuda.current_device() == prepared.device:
        _start(prepared, addresses)
        return
    with torch.cuda.device(prepared.device):
        _start(prepared, addresses)


# Devices whose context this thread has made current. PyTorch does so at its first CUDA runtime call, which in an
# autograd thread can come after this launch.
_thread_devices = threading.local()


def _start(prepared: LaunchPlan, addresses: list[int]) -> None:
    devices = _thread_devices.__dict__.setdefault("devices", set())
    if prepared.device not in devices:
        core().Device(prepared.device).set_current()
        devices.add(prepared.device)
    stream = _stream(torch.cuda.current_stream(prepared.device).cuda_stream)
    _run()(stream, prepared.settings, prepared.kernel, *addresses, *prepared.scalars)


@functools.cache
def _run() -> Callable[..., None]:
    return core().launch


@functools.lru_cache(maxsize=64)
def _stream(handle: int) -> Any:
    return core().LEGACY_DEFAULT_STREAM if handle == 0 else core().Stream.from_handle(handle)


@functools.cache
def num_multiprocessors(device: int) -> int:
    """The number of multiprocessors of the GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def min_shared_memory(device: int, resident: int) -> int:
    """Dynamic shared memory per block, in bytes, that limits a multiprocessor to `resident` blocks."""
    whole = torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor
    # The driver reserves 1 KiB per block.
    return whole // (resident + 1) - 1024 + 128


def ceil_div(whole: int, part: int) -> int:
    """`whole / part` rounded up."""
    return -(-whole // part)
