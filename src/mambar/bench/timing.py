"""Timing with warm-up, interleaved rounds, medians and quartiles."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds per call over rounds: `median`, lower quartile `low`, upper quartile `high`."""

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


def summarize(seconds: list[float]) -> Timing:
    """Median and quartiles of repeated measurements."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return Timing(median=median, low=low, high=high, rounds=len(seconds))


def interleaved(
    works: Mapping[str, Work], *, device: str = "cpu", rounds: int = 7, min_seconds: float = 0.02
) -> dict[str, Timing]:
    """Times several functions in alternating rounds, so that changes of the machine load affect all of them.

    On a CPU it measures the CPU time of the process over all threads, on a GPU the time between two stream events.
    Each measurement repeats a function for at least about `min_seconds`, after one warm-up call.
    """
    clock = _gpu_seconds if device.startswith("cuda") else _cpu_seconds
    repeats = {}
    for name, work in works.items():
        clock(work, 1)
        once = max(clock(work, 1), 1e-7)
        repeats[name] = max(1, round(min_seconds / once))
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(clock(work, repeats[name]) / repeats[name])
    return {name: summarize(values) for name, values in seconds.items()}


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
    """Peak GPU memory allocated by PyTorch during `work`, in bytes; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
