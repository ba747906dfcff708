"""Starts compiled kernels on PyTorch's current stream. What follows from shapes alone is found once and kept.

A launch from Python costs time that small batches feel: so a `Plan` holds all that depends on the layout of the
tensors, and what is left to do is to read their addresses.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambar.ops.cuda.program import core, load_kernel

# How the kernels tell the types of activations apart.
SCALARS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Bytes the copy unit moves at once, all or nothing.
PIECE = 16


class Layout(NamedTuple):
    """How a tensor lies in memory: all that a plan may depend on."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    beyond: int
    """Its address beyond a multiple of 16 bytes."""
    dtype: torch.dtype
    device: int

    @staticmethod
    def of(tensor: Tensor) -> "Layout":
        """That of a tensor on a GPU."""
        return Layout(tensor.shape, tensor.stride(), tensor.data_ptr() % PIECE, tensor.dtype, tensor.get_device())

    @staticmethod
    def maybe(tensor: Tensor | None) -> "Layout | None":
        """That of a tensor, or None."""
        return None if tensor is None else Layout.of(tensor)

    @property
    def channels(self) -> int:
        """The size of the last dimension."""
        return self.shape[-1]

    @property
    def steps(self) -> tuple[int, int]:
        """Elements from one batch, and from one position, to the next."""
        return self.strides[-3], self.strides[-2]

    @property
    def all_steps(self) -> tuple[int, int, int]:
        """The same, then from one direction to the other where the tensor has both."""
        return *self.steps, self.strides[0] if len(self.shape) == 4 else 0

    def fits(self, count: int) -> bool:
        """Whether its rows are whole aligned groups of this many neighbouring channels."""
        size = self.dtype.itemsize
        inner = zip(self.shape[:-1], self.strides[:-1], strict=True)
        aligned = self.beyond % (count * size) == 0 and self.channels % count == 0
        return aligned and all(length == 1 or stride % count == 0 for length, stride in inner)

    @property
    def is_pieces(self) -> bool:
        """Whether its rows are whole aligned pieces of 16 bytes."""
        return self.fits(PIECE // self.dtype.itemsize)


def channels_at_once(wanted: int, *layouts: Layout | None) -> int:
    """How many neighbouring channels (wanted, half of it, ... 1) can be loaded at once from all of these."""
    while wanted > 1 and not all(layout is None or layout.fits(wanted) for layout in layouts):
        wanted //= 2
    return wanted


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A launch but for the addresses: kernel, grid, and the whole numbers behind the pointers."""

    device: int
    kernel: Any
    settings: Any
    numbers: tuple[int | float, ...]
    sizes: tuple[int, ...] = ()
    """Sizes of what the caller allocates for the kernel."""


def plan(
    source: str,
    function: str,
    device: int,
    *,
    grid: tuple[int, int, int],
    block: int,
    numbers: tuple[int | float, ...],
    shared: int = 0,
    sizes: tuple[int, ...] = (),
    macros: Mapping[str, int],
) -> Plan:
    """Compiles `function` of `source`.cu and says how to start it."""
    kernel = load_kernel(source, function, device, shared, tuple(sorted(macros.items())))
    settings = core().LaunchConfig(grid=grid, block=block, shmem_size=shared)
    return Plan(device=device, kernel=kernel, settings=settings, numbers=numbers, sizes=sizes)


def launch(prepared: Plan, *tensors: Tensor | None) -> None:
    """Runs it; whole numbers reach the kernel as 64-bit integers, None as a null pointer."""
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    if torch.cuda.current_device() == prepared.device:
        _start(prepared, addresses)
        return
    with torch.cuda.device(prepared.device):
        _start(prepared, addresses)


# Which devices' contexts this thread has made current. PyTorch does so at its first call of the CUDA runtime, which
# in a thread of autograd's may come after ours.
_bound = threading.local()


def _start(prepared: Plan, addresses: list[int]) -> None:
    devices = _bound.__dict__.setdefault("devices", set())
    if prepared.device not in devices:
        core().Device(prepared.device).set_current()
        devices.add(prepared.device)
    stream = _stream(torch.cuda.current_stream(prepared.device).cuda_stream)
    _run()(stream, prepared.settings, prepared.kernel, *addresses, *prepared.numbers)


@functools.cache
def _run() -> Callable[..., None]:
    return core().launch


@functools.lru_cache(maxsize=64)
def _stream(handle: int) -> Any:
    return core().LEGACY_DEFAULT_STREAM if handle == 0 else core().Stream.from_handle(handle)


@functools.cache
def multiprocessors(device: int) -> int:
    """How many multiprocessors the GPU has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def least_shared_memory(device: int, resident: int) -> int:
    """Bytes of dynamic shared memory a block must ask for so that no more than `resident` share a multiprocessor."""
    whole = torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor
    # Each block pays 1 KiB to the driver.
    return whole // (resident + 1) - 1024 + 128


def ceil_div(whole: int, part: int) -> int:
    """`whole / part`, rounded up."""
    return -(-whole // part)
