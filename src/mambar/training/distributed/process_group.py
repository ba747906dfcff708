"""The processes of one run and their collective operations; a single process needs no torch.distributed group."""

import datetime
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from mambar.device import choose_device
from mambar.errors import BackendUnavailable, InputError
from mambar.training.distributed import environment

# Seconds until a collective operation fails because a process does not answer.
TIMEOUT: Final = 120
# Elements gathered at a time; bounds the memory of a gather to 64 MiB of float32 from each rank.
_CHUNK_ELEMENTS: Final = 1 << 24


@dataclass(frozen=True)
class ProcessGroup:
    """Rank, number of processes, and the device of this process.

    Attributes:
        rank: Rank of this process.
        world_size: Number of processes.
        device: Device of this process.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes files and reports to the user."""
        return self.rank == 0

    @property
    def peak_memory(self) -> float | None:
        """Peak memory in GiB: PyTorch's on a GPU, else that of the whole process; None if unknown."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        try:
            import resource
        except ImportError:
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # Linux counts in KiB, macOS in bytes.
        return peak / (2**30 if sys.platform == "darwin" else 2**20)

    def local_shards(self, count: int) -> range:
        """The indices of this rank's shards out of `count`, round robin."""
        if count % self.world_size:
            raise InputError(
                f"num_shards={count} cannot be divided among {self.world_size} processes; use a multiple of "
                f"{self.world_size}, for example num_shards={max(count // self.world_size, 1) * self.world_size}."
            )
        return range(self.rank, count, self.world_size)

    def all_reduce_ordered(self, total: Tensor, local: Tensor) -> None:
        """Adds every rank's flat `local` to `total` in the order of ranks: bit-identical on every rank."""
        if self.world_size == 1:
            total.add_(local)
            return
        for start in range(0, local.numel(), _CHUNK_ELEMENTS):
            part = local[start : start + _CHUNK_ELEMENTS]
            parts = [torch.empty_like(part) for _ in range(self.world_size)]
            dist.all_gather(parts, part)
            for other in parts:
                total[start : start + _CHUNK_ELEMENTS].add_(other)

    def all_reduce(self, counts: Tensor) -> Tensor:
        """The sum over all ranks; exact for integers."""
        if self.world_size > 1:
            counts = counts.to(self.device)
            dist.all_reduce(counts)
        return counts

    def broadcast_object(self, value: Any) -> Any:
        """The value of rank 0, on every rank; plain data only."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all ranks, in the order of ranks; plain data only."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        if self.world_size > 1:
            self.all_reduce(torch.zeros(1))


def local_device(name: str) -> torch.device:
    """The device named `name` (`auto`, `cpu`, `cuda`, …) of this process: with several processes, a GPU each."""
    device, rank = torch.device(choose_device(name)), environment.local_rank()
    if device.type != "cuda" or (device.index is not None and environment.world_size() == 1):
        return device
    if device.index is not None:
        raise InputError(f"device {name} is one GPU for several processes; choose cuda.")
    count = torch.cuda.device_count()
    if rank >= count:
        raise BackendUnavailable(
            f"Process {rank} of this machine has no GPU: there are {count}; start fewer processes."
        )
    return torch.device("cuda", rank)


@contextmanager
def init_process_group(device: str) -> Iterator[ProcessGroup]:
    """The process group of the processes that torchrun started, for the duration of the block."""
    chosen = local_device(device)
    world = environment.world_size()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield ProcessGroup(device=chosen)
        return
    seconds = int(os.environ.get("MAMBAR_TIMEOUT", str(TIMEOUT)))
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=datetime.timedelta(seconds=seconds))
    try:
        yield ProcessGroup(rank=dist.get_rank(), world_size=world, device=chosen)
    finally:
        dist.destroy_process_group()
