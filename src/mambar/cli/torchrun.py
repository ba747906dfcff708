"""Runs torchrun and returns the exit code of its ranks, without its log and its table of failures."""

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType


def main(arguments: Sequence[str]) -> int:
    """Runs torchrun with `arguments`; the exit code of the first rank that failed, 0 if none did.

    A rank prints its own error. A rank that was killed by a signal printed none, so it is reported here.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.disable()
    try:
        torchrun(list(arguments))
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        number = signal.Signals(-failure.exitcode)
        sys.stderr.write(f"mambar: rank {rank} was killed by {number.name}.\n")
        return 128 + number if number in (signal.SIGINT, signal.SIGTERM) else 1
    return 0


def under_torchrun(processes: int, restarts: int = 0) -> int:
    """Runs the command of this process under torchrun; returns the exit code of the ranks.

    Without TORCH_DISABLE_SHARE_RDZV_TCP_STORE, which torchrun's agent reads, a restart can hang. The rendezvous is
    at 127.0.0.1 because the machine's host name may not resolve.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--processes")
    parser.add_argument("--max-restarts")
    _, own = parser.parse_known_args()
    command = [
        *(sys.executable, "-m", "mambar.cli.torchrun", "--standalone", "--local-addr=127.0.0.1"),
        *(f"--nproc_per_node={processes}", f"--max-restarts={restarts}", "-m", "mambar", *own),
    ]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # In a separate session, so that the agent receives Ctrl-C only once, through `forward`.
    agent = subprocess.Popen(command, env=environment, start_new_session=True)
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # The agent sends the signal to the ranks, which save. After a second signal the agent would not wait for them.
        if len(received) == 1:
            agent.terminate()

    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), forward)
    code = agent.wait()
    if not received or code == 0:
        return code
    return 130 if received[0] == signal.SIGINT else 143


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
