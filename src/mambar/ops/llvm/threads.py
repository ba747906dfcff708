"""Runs a kernel's tasks on `torch.get_num_threads()` threads.

The calling thread works too; the helpers are kept between calls. Tasks are taken one by one from a counter in
memory by the kernels themselves, without the interpreter's lock, so an occupied core takes fewer of them.
"""

import ctypes
import os
import queue
import threading
from collections.abc import Sequence

import torch

from mambar.ops.llvm.compiler import Kernel


class _Job:
    """One run of a kernel: helpers may join until the calling thread closes it."""

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
        """Works on tasks until none is left; does nothing once the job is closed."""
        with self._condition:
            if self._closed:
                return
            seat = self._joined
            self._joined += 1
            self._working += 1
        try:
            scratch = self._scratch[seat].data_ptr()
            self._kernel(ctypes.addressof(self._arguments), ctypes.addressof(self._next_task), scratch)
        finally:
            with self._condition:
                self._working -= 1
                self._condition.notify_all()

    def close(self) -> None:
        """Lets nobody else join and waits for those who have."""
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: self._working == 0)


class _Helpers:
    """Threads that wait for jobs; made when first needed, made anew in a forked process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._num_threads = 0

    def ask(self, job: _Job, num_helpers: int) -> None:
        with self._lock:
            for index in range(self._num_threads, num_helpers):
                threading.Thread(target=self._work, name=f"mambar-llvm-{index}", daemon=True).start()
            self._num_threads = max(self._num_threads, num_helpers)
        for _ in range(num_helpers):
            self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get().join()


_helpers = _Helpers()


def _forget_helpers() -> None:
    global _helpers
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


def run(kernel: Kernel, arguments: Sequence[int], *, scratch_floats: int = 0, max_threads: int | None = None) -> None:
    """Runs all tasks of a kernel; `arguments` in the order of its argument names, the number of tasks first.

    A thread is worth its waking for two tasks or more.
    """
    num_tasks = arguments[0]
    if num_tasks == 0:
        return
    num_threads = max(1, min(torch.get_num_threads(), num_tasks // 2, max_threads or num_tasks))
    scratch = torch.empty(num_threads, _whole_lines(scratch_floats), dtype=torch.float32)
    job = _Job(kernel, (ctypes.c_int64 * len(arguments))(*arguments), scratch)
    if num_threads > 1:
        _helpers.ask(job, num_threads - 1)
    job.join()
    job.close()


def _whole_lines(num_floats: int) -> int:
    return -(-max(num_floats, 1) // 16) * 16
