"""The processes of one run: who I am, and the few things we exchange. One process needs no process group."""

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

# Seconds after which a process that waits for a dead one gives up.
TIMEOUT: Final = 120
# Numbers gathered at a time: bounds the memory of an exchange (64 MiB of float32 from each process).
_PIECE: Final = 1 << 24


@dataclass(frozen=True)
class ProcessGroup:
    """Rank and number of the processes, and the device of this one."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    @property
    def peak_memory(self) -> float | None:
        """The most memory so far in GiB: what PyTorch took of a GPU, elsewhere all of this process; None if unknown."""
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
        """The virtual shards of this process, round robin."""
        if count % self.world_size:
            raise InputError(
                f"num_shards={count} cannot be spread evenly over {self.world_size} processes; use a multiple of "
                f"{self.world_size}, for example num_shards={max(count // self.world_size, 1) * self.world_size}."
            )
        return range(self.rank, count, self.world_size)

    def all_reduce_ordered(self, total: Tensor, mine: Tensor) -> None:
        """Adds every process's flat `mine` to `total`, rank by rank: the same bits in every process."""
        if self.world_size == 1:
            total.add_(mine)
            return
        for start in range(0, mine.numel(), _PIECE):
            part = mine[start : start + _PIECE]
            parts = [torch.empty_like(part) for _ in range(self.world_size)]
            dist.all_gather(parts, part)
            for other in parts:
                total[start : start + _PIECE].add_(other)

    def all_reduce(self, counts: Tensor) -> Tensor:
        """The sum over all processes; exact for whole numbers."""
        if self.world_size > 1:
            counts = counts.to(self.device)
            dist.all_reduce(counts)
        return counts

    def broadcast_object(self, value: Any) -> Any:
        """What rank 0 has, in every process (plain data only)."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """What every process has, in the order of ranks (plain data only)."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Returns once every process is here."""
        if self.world_size > 1:
            self.all_reduce(torch.zeros(1))


def local_device(name: str) -> torch.device:
    """The device named `name` (`auto`, `cpu`, `cuda`, …) of this process: with several processes, a GPU each."""
    device, rank = torch.device(choose_device(name)), environment.local_rank()
    if device.type != "cuda" or (device.index is not None and environment.world_size() == 1):
        return device
    if device.index is not None:
        raise InputError(f"device={name} is one GPU for several processes; use device=cuda.")
    count = torch.cuda.device_count()
    if rank >= count:
        raise BackendUnavailable(
            f"Process {rank} of this machine has no GPU: there are {count}; start fewer processes."
        )
    return torch.device("cuda", rank)


@contextmanager
def init_process_group(device: str) -> Iterator[ProcessGroup]:
    """The processes torchrun started (or this one alone), joined for the length of the block."""
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
