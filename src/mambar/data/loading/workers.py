"""Worker processes that prefetch results and return them in order.

torch's DataLoader is not used. It raises the exit of a worker from a signal handler, at any point of the main thread
(while a checkpoint is written, for example). Its workers exit at a signal that a scheduler sends to the process group,
and it draws from the global generator. Here the exit of a worker raises an error in `results`, workers ignore stop
signals, and a worker whose parent has exited reads the end of its pipe and exits.
"""

import atexit
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch
import torch.multiprocessing

from mambar.errors import MambarError

Task = TypeVar("Task")
Result = TypeVar("Result")

_PREFETCH = 2
_JOIN_SECONDS = 2.0
# The parent handles Ctrl-C and a scheduler's signals to the process group: it saves, then closes the pipe.
_STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class WorkerPool(Generic[Task, Result]):
    """`count` processes that compute `make(task)`; tensors are returned in shared memory, without a copy."""

    def __init__(self, make: Callable[[Task], Result], count: int) -> None:
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        context = torch.multiprocessing.get_context()
        atexit.register(self.close)
        for _ in range(count):
            own, other = context.Pipe()
            process = context.Process(target=_serve, args=(make, own, other), daemon=True)
            with _block_signals():
                process.start()
            # Only the worker has this end open now, so that its exit closes it.
            other.close()
            self._connections.append(own)
            self._processes.append(process)

    def results(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """The results in the order of the tasks; each worker prefetches two. An error of a task is raised here.

        Raises MambarError if a worker has exited.
        """
        count = len(self._processes)
        for number in range(min(_PREFETCH * count, len(tasks))):
            self._send(number % count, tasks[number])
        for number in range(len(tasks)):
            result = self._receive(number % count)
            if number + _PREFETCH * count < len(tasks):
                self._send(number % count, tasks[number + _PREFETCH * count])
            if isinstance(result, BaseException):
                raise result
            yield result

    def close(self) -> None:
        """Ends all workers, also busy ones; a second call has no effect."""
        atexit.unregister(self.close)
        for connection in self._connections:
            # Closing is not enough: workers of a later pool have inherited this end of the pipe.
            with suppress(OSError):
                connection.send(None)
            connection.close()
        for process in self._processes:
            process.join(_JOIN_SECONDS / len(self._processes))
            if process.is_alive():
                process.kill()
                process.join()
        self._connections, self._processes = [], []

    def _send(self, worker: int, task: Task) -> None:
        try:
            self._connections[worker].send(task)
        except OSError as error:
            raise self._exit_error(worker) from error

    def _receive(self, worker: int) -> Any:
        connection = self._connections[worker]
        wait([connection, self._processes[worker].sentinel])
        try:
            if connection.poll():
                return connection.recv()
        # End of the pipe, or the worker exited before its tensors were fetched.
        except (EOFError, OSError) as error:
            raise self._exit_error(worker) from error
        raise self._exit_error(worker)

    def _exit_error(self, worker: int) -> MambarError:
        process = self._processes[worker]
        process.join(_JOIN_SECONDS)
        code = process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return MambarError(
            f"a data worker died ({how}); check memory and shared memory (/dev/shm), or choose 0 workers."
        )


@contextmanager
def _block_signals() -> Iterator[None]:
    """Blocks the stop signals; a process started in the block inherits this until it ignores them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(make: Callable[[Any], Any], parent: Connection, connection: Connection) -> None:
    # Otherwise the worker would keep the pipe open and never read its end.
    parent.close()
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    torch.set_num_threads(1)
    try:
        while (task := connection.recv()) is not None:
            connection.send(_result(make, task))
    except (EOFError, OSError):
        # The parent has exited.
        pass
    # Without the exit handlers inherited from the parent.
    os._exit(0)


def _result(make: Callable[[Any], Any], task: Any) -> Any:
    try:
        return make(task)
    except MambarError as error:
        return error.with_traceback(None)
    except Exception as error:
        # An exception of another library may fail to unpickle: its text is sent.
        text = "".join(traceback.format_exception(error))
        if type(error).__module__ != "builtins" or not all(isinstance(part, str | int) for part in error.args):
            return RuntimeError(text)
        error.add_note(text)
        return error
