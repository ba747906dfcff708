"""Launches a kernel on tensors, passing pointers and strides by argument name."""

import time
from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from mambar.ops.llvm import roofline, sums
from mambar.ops.llvm.compiler import get_kernel
from mambar.ops.llvm.functions import num_channel_blocks
from mambar.ops.llvm.machine import Machine, current_machine
from mambar.ops.llvm.threads import run

# Larger results exceed the second-level caches of a few cores and are read back from memory in any case.
LARGE_BYTES = 4 << 20


def launch(
    machine: Machine,
    module: ModuleType,
    dtype: torch.dtype,
    *,
    arguments: Mapping[str, int],
    scratch_floats: int = 0,
    max_threads: int | None = None,
) -> None:
    """Runs the tasks of a kernel for a dtype of the activations; the keys of `arguments` must be its ARGUMENTS."""
    names = module.ARGUMENTS
    if len(arguments) != len(names) or any(name not in arguments for name in names):
        odd = sorted(arguments.keys() ^ set(names))
        raise TypeError(f"{module.__name__} has missing or unknown arguments: {', '.join(odd)}.")
    values = [arguments[name] for name in names]
    launch_in_order(machine, module, dtype, values, scratch_floats=scratch_floats, max_threads=max_threads)


def launch_in_order(
    machine: Machine,
    module: ModuleType,
    dtype: torch.dtype,
    values: Sequence[int],
    *,
    scratch_floats: int = 0,
    max_threads: int | None = None,
) -> None:
    """As `launch`, with the values in the order of ARGUMENTS: for kernels that run in every block."""
    if len(values) != len(module.ARGUMENTS):
        raise TypeError(f"{module.__name__} takes {len(module.ARGUMENTS)} arguments, not {len(values)}.")
    kernel = get_kernel(module, dtype, machine)
    if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        with torch.autograd.profiler.record_function(module.__name__.removeprefix("mambar.ops.")):
            run(kernel, values, scratch_floats=scratch_floats, max_threads=max_threads)
    else:
        run(kernel, values, scratch_floats=scratch_floats, max_threads=max_threads)


def addresses(**tensors: Tensor | None) -> dict[str, int]:
    """The addresses of the tensors' first elements; 0 for None."""
    return {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}


def in_scan_order(tensor: Tensor, reverse: bool, channel: int = 0) -> tuple[int, int, int]:
    """The address of a (batch, length, channels) tensor from a channel on, and its strides over batch and time.

    With `reverse` the address is that of the last position and the stride over time is negative.
    """
    batch, time, _ = tensor.stride()
    size = tensor.element_size()
    address = tensor.data_ptr() + channel * size
    return (address + (tensor.shape[1] - 1) * time * size, batch, -time) if reverse else (address, batch, time)


def strided_arguments(reverse: bool, **tensors: Tensor | None) -> dict[str, int]:
    """The arguments NAME, NAME_batch, NAME_time of tensors, in scan order; 0 for None."""
    arguments: dict[str, int] = {}
    for name, tensor in tensors.items():
        values = (0, 0, 0) if tensor is None else in_scan_order(tensor, reverse)
        arguments[name], arguments[f"{name}_batch"], arguments[f"{name}_time"] = values
    return arguments


def sum_parts(parts: Tensor) -> Tensor:
    """The sum over the first dimension of a contiguous float32 tensor, in the order of that dimension."""
    if parts.shape[0] == 1:
        return parts[0]
    out = torch.empty(parts.shape[1:], dtype=torch.float32)
    machine = current_machine()
    arguments = {
        "num_tasks": num_channel_blocks(machine, out.numel(), sums.VECTORS_PER_BLOCK),
        "inner": out.numel(),
        "num_parts": parts.shape[0],
        **addresses(parts=parts, out=out),
    }
    launch(machine, sums, torch.float32, arguments=arguments, max_threads=1 + parts.numel() // 1_000_000)
    return out


def should_stream(machine: Machine, *results: Tensor | None) -> bool:
    """True if results should bypass the caches: larger than the caches, and rows aligned to whole vectors."""
    given = [result for result in results if result is not None]
    return sum(result.nbytes for result in given) > LARGE_BYTES and all(_is_vector_aligned(machine, r) for r in given)


def _is_vector_aligned(machine: Machine, tensor: Tensor) -> bool:
    sizes = (*tensor.stride()[:-1], tensor.shape[-1])
    return (
        all(size % machine.lanes == 0 for size in sizes)
        and tensor.data_ptr() % (machine.lanes * tensor.element_size()) == 0
    )


def roofline_states_per_second(*, backward: bool = False, rounds: int = 200_000) -> float:
    """State updates per second of one core: the best of five runs of the roofline kernel."""
    arguments = {"num_tasks": 1, "rounds": rounds, "backward": int(backward)}
    scratch_floats = roofline.STATES * roofline.VECTORS * current_machine().lanes
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        launch(current_machine(), roofline, torch.float32, arguments=arguments, scratch_floats=scratch_floats)
        best = min(best, time.process_time() - start)
    return rounds * roofline.VECTORS * current_machine().lanes / best
