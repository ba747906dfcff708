"""Starts a compiled kernel on PyTorch's current stream, and what its callers ask of a tensor's layout."""

import functools
from typing import Any

import torch
from torch import Tensor

from mambar.ops.cuda.program import core, load_kernel

# How the kernels tell the types of activations apart.
SCALARS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

Argument = Tensor | int | float | None


def launch(
    source: str,
    function: str,
    grid: tuple[int, int, int],
    block: int,
    *arguments: Argument,
    shared: int = 0,
    **macros: int,
) -> None:
    """Runs a kernel of `source`.cu. Whole numbers reach it as 64-bit integers, None as a null pointer."""
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    device = first.device.index
    with torch.cuda.device(device):
        kernel = load_kernel(source, function, device, shared, tuple(sorted(macros.items())))
        settings = core().LaunchConfig(grid=grid, block=block, shmem_size=shared)
        core().launch(_current_stream(device), settings, kernel, *(_plain(a) for a in arguments))


def _plain(argument: Argument) -> int | float:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return 0 if argument is None else argument


def _current_stream(device: int) -> Any:
    handle = torch.cuda.current_stream(device).cuda_stream
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


def channels_at_once(wanted: int, *activations: Tensor | None) -> int:
    """How many neighbouring channels (wanted, half of it, ... 1) can be loaded at once from all of these."""
    count = wanted
    while count > 1:
        if all(a is None or _fits(a, count) for a in activations):
            return count
        count //= 2
    return count


def _fits(activation: Tensor, count: int) -> bool:
    whole = activation.shape[-1] % count == 0 and activation.data_ptr() % (count * activation.element_size()) == 0
    strides = zip(activation.shape[:-1], activation.stride()[:-1], strict=True)
    return whole and all(size == 1 or stride % count == 0 for size, stride in strides)


def ceil_div(whole: int, part: int) -> int:
    """`whole / part`, rounded up."""
    return -(-whole // part)
