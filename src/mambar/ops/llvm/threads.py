"""Runs a kernel's tasks on `torch.get_num_threads()` threads.

The calling thread is one of them; the others are kept between calls. The kernels take tasks one by one from a counter
in memory, without the GIL, so a busy core takes fewer tasks.
"""

import ctypes
import os
import queue
import threading
from collections.abc import Sequence

import torch

from mambar.ops.llvm.compiler import Kernel


class _Job:
    """One run of a kernel; worker threads can join until the calling thread closes it."""

    def __init__(self, kernel: Kernel, arguments: ctypes.Array[ctypes.c_int64], scratch: torch.Tensor):
        self._kernel = kernel
        self._arguments = arguments
        self._scratch = scratch
        self._next_task = ctypes.c_int64(0)
        self._condition = threading.Condition()
        self._closed = False
        self._joined = 0
        self._working = 0

    def join(self) -> None:
        """Runs tasks until none is left; returns at once if the job is closed."""
        with self._condition:
            if self._closed:
                return
            slot = self._joined
            self._joined += 1
            self._working += 1
        try:
            scratch = self._scratch[slot].data_ptr()
            self._kernel(ctypes.addressof(self._arguments), ctypes.addressof(self._next_task), scratch)
        finally:
            with self._condition:
                self._working -= 1
                self._condition.notify_all()

    def close(self) -> None:
        """Stops further threads from joining and waits for those that joined."""
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: self._working == 0)


class _WorkerThreads:
    """Threads that wait for jobs; started at the first use, and again in a forked process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._num_threads = 0

    def submit(self, job: _Job, num_workers: int) -> None:
        with self._lock:
            for index in range(self._num_threads, num_workers):
                threading.Thread(target=self._work, name=f"mambar-llvm-{index}", daemon=True).start()
            self._num_threads = max(self._num_threads, num_workers)
        for _ in range(num_workers):
            self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get().join()


_workers = _WorkerThreads()


def _reset_workers() -> None:
    global _workers
    _workers = _WorkerThreads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_workers)


def run(kernel: Kernel, arguments: Sequence[int], *, scratch_floats: int = 0, max_threads: int | None = None) -> None:
    """Runs all tasks of a kernel; `arguments` has the order of its argument names, the number of tasks first.

    A further thread is used only for two tasks or more.
    """
    num_tasks = arguments[0]
    if num_tasks == 0:
        return
    num_threads = max(1, min(torch.get_num_threads(), num_tasks // 2, max_threads or num_tasks))
    # Whole cache lines for each thread.
    scratch = torch.empty(num_threads, -(-max(scratch_floats, 1) // 16) * 16, dtype=torch.float32)
    job = _Job(kernel, (ctypes.c_int64 * len(arguments))(*arguments), scratch)
    if num_threads > 1:
        _workers.submit(job, num_threads - 1)
    job.join()
    job.close()
