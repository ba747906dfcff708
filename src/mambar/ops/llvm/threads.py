"""Runs a kernel's tasks on `torch.get_num_threads()` threads.

The kernels take tasks one by one from a counter in memory, without the GIL, so a busy core takes fewer tasks. The
threads are those of the OpenMP library that PyTorch itself uses: while they wait for work they keep their cores busy,
and other threads would wait for a core. Where this library offers no such call (macOS, Windows), and in a forked
process, which has no OpenMP threads, the calling thread and threads of Python run the tasks.
"""

import ctypes
import os
import queue
import sys
import threading
from array import array
from collections.abc import Callable, Sequence

import torch

from mambar.ops.llvm.compiler import Kernel


def _find_openmp() -> Callable[[int, int, int, int], None] | None:
    """The function of PyTorch's OpenMP library that runs a C function on several threads; None without one."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if function is not None:
        function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return function


_run_by_openmp = _find_openmp()


class _Job:
    """One call of a kernel; worker threads can join until the calling thread closes it."""

    def __init__(self, kernel: Kernel, call: int):
        self._kernel = kernel
        self._call = call
        self._condition = threading.Condition()
        self._closed = False
        self._working = 0

    def join(self) -> None:
        """Runs tasks until none is left; returns at once if the job is closed."""
        with self._condition:
            if self._closed:
                return
            self._working += 1
        try:
            self._kernel.run(self._call)
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


def _forget_threads() -> None:
    global _workers, _run_by_openmp
    _workers, _run_by_openmp = _WorkerThreads(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run(kernel: Kernel, arguments: Sequence[int], *, scratch_floats: int = 0, max_threads: int | None = None) -> None:
    """Runs all tasks of a kernel; `arguments` has the order of its argument names, the number of tasks first.

    Further threads are used only if there are two tasks for each.
    """
    num_tasks = arguments[0]
    if num_tasks == 0:
        return
    num_threads = max(1, min(torch.get_num_threads(), num_tasks // 2, max_threads or num_tasks))
    # Whole cache lines for each thread.
    scratch = torch.empty(num_threads, -(-max(scratch_floats, 1) // 16) * 16, dtype=torch.float32)
    # See `functions.TaskFunction`: the next task and thread, the scratch memory, its bytes per thread, the arguments.
    call = array("q", (0, 0, scratch.data_ptr(), scratch.stride(0) * 4, *arguments))
    address = call.buffer_info()[0]
    if num_threads == 1:
        kernel.run(address)
    elif _run_by_openmp is not None:
        _run_by_openmp(kernel.address, address, num_threads, 0)
    else:
        job = _Job(kernel, address)
        _workers.submit(job, num_threads - 1)
        job.join()
        job.close()
