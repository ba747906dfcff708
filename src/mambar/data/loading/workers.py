"""Processes that make things ahead of time and hand them over in order.

torch's DataLoader is not used: its parent raises the death of a worker from a signal handler, wherever the main
thread happens to be (a half-written checkpoint, say), its workers die of a signal that a scheduler sends to the
whole group, and it draws from the global generator. Here a death is an error of `results`, signals are the
parent's affair, and a worker whose parent is gone reads the end of its pipe and ends.
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

_AHEAD = 2
_PATIENCE = 2.0
# Ctrl-C, and a scheduler's signals to the whole group, are for the parent: it saves, then closes the pipe.
_THE_PARENTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class WorkerPool(Generic[Task, Result]):
    """`count` processes that compute `make(task)`; tensors come back through shared memory, uncopied."""

    def __init__(self, make: Callable[[Task], Result], count: int) -> None:
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        context = torch.multiprocessing.get_context()
        atexit.register(self.close)
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(make, ours, theirs), daemon=True)
            with _signals_held():
                process.start()
            # Only the worker holds this end now: its death closes it.
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def results(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """The results in the tasks' order, each worker two tasks ahead; what a task raises is raised here.

        MambarError when a worker has died.
        """
        count = len(self._processes)
        for number in range(min(_AHEAD * count, len(tasks))):
            self._send(number % count, tasks[number])
        for number in range(len(tasks)):
            result = self._receive(number % count)
            if number + _AHEAD * count < len(tasks):
                self._send(number % count, tasks[number + _AHEAD * count])
            if isinstance(result, BaseException):
                raise result
            yield result

    def close(self) -> None:
        """End all workers, those in the middle of something too; calling it again does nothing."""
        atexit.unregister(self.close)
        for connection in self._connections:
            # Said, not only closed: workers of a younger pool have inherited this end of the pipe.
            with suppress(OSError):
                connection.send(None)
            connection.close()
        for process in self._processes:
            process.join(_PATIENCE / len(self._processes))
            if process.is_alive():
                process.kill()
                process.join()
        self._connections, self._processes = [], []

    def _send(self, worker: int, task: Task) -> None:
        try:
            self._connections[worker].send(task)
        except OSError as error:
            raise self._death(worker) from error

    def _receive(self, worker: int) -> Any:
        connection = self._connections[worker]
        wait([connection, self._processes[worker].sentinel])
        try:
            if connection.poll():
                return connection.recv()
        # The pipe's end, or the worker died before its tensors were fetched.
        except (EOFError, OSError) as error:
            raise self._death(worker) from error
        raise self._death(worker)

    def _death(self, worker: int) -> MambarError:
        process = self._processes[worker]
        process.join(_PATIENCE)
        code = process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return MambarError(
            f"a data worker died ({how}); look for a lack of memory or of shared memory (/dev/shm), or try workers=0."
        )


@contextmanager
def _signals_held() -> Iterator[None]:
    """Inside, the parent's signals wait; a process started here inherits that, until it ignores them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _THE_PARENTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(make: Callable[[Any], Any], parents: Connection, connection: Connection) -> None:
    # Else this worker would hold its own pipe open, and never read its end.
    parents.close()
    for number in _THE_PARENTS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _THE_PARENTS)
    torch.set_num_threads(1)
    try:
        while (task := connection.recv()) is not None:
            connection.send(_made(make, task))
    except (EOFError, OSError):
        # The parent is gone.
        pass
    # Without the tidying up that was inherited from the parent.
    os._exit(0)


def _made(make: Callable[[Any], Any], task: Any) -> Any:
    try:
        return make(task)
    except MambarError as error:
        return error.with_traceback(None)
    except Exception as error:
        # An error of another library may not survive the journey: it goes as text.
        text = "".join(traceback.format_exception(error))
        if type(error).__module__ != "builtins" or not all(isinstance(part, str | int) for part in error.args):
            return RuntimeError(text)
        error.add_note(text)
        return error
