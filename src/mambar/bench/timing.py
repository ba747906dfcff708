"""Times that mean something: warmed up, interleaved, medians with their spread."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one call: the median over rounds, and the quartiles around it."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def milliseconds(self) -> float:
        """The median in milliseconds."""
        return self.median * 1e3

    def __str__(self) -> str:
        return f"{self.median * 1e3:.3g} ms ({self.low * 1e3:.3g}-{self.high * 1e3:.3g})"


def summarise(seconds: list[float]) -> Timing:
    """Median and quartiles of repeated measurements."""
    ordered = sorted(seconds)
    if len(ordered) < 3:
        low, high = ordered[0], ordered[-1]
    else:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return Timing(median=statistics.median(ordered), low=low, high=high, rounds=len(ordered))


def interleaved(
    works: Mapping[str, Work], *, device: str = "cpu", rounds: int = 7, least: float = 0.02
) -> dict[str, Timing]:
    """Times several pieces of work in turns, so that a change of the machine's load meets all alike.

    On a CPU the process's CPU time counts, of all its threads; on a GPU the time between two events on the
    stream. Each measurement repeats the work until it lasts `least` seconds; every work is run once before.
    """
    clock = _gpu_seconds if device.startswith("cuda") else _cpu_seconds
    repeats = {}
    for name, work in works.items():
        clock(work, 1)
        once = max(clock(work, 1), 1e-7)
        repeats[name] = max(1, round(least / once))
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(clock(work, repeats[name]) / repeats[name])
    return {name: summarise(values) for name, values in seconds.items()}


def _cpu_seconds(work: Work, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        work()
    return time.process_time() - start


def _gpu_seconds(work: Work, repeats: int) -> float:
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(repeats):
        work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def peak_memory(work: Work, *, device: str) -> int | None:
    """The largest number of bytes PyTorch held on a GPU while `work` ran; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
