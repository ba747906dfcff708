"""torchrun that ends with the exit code of its ranks; its log and its table of failures are not printed."""

import logging
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs torchrun with `arguments`; the exit code of the first rank that failed, 0 if none did.

    A rank prints its own error. One that a signal ended could not, so it is reported here.
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
        sys.stderr.write(f"mambar: rank {rank} was ended by {number.name}.\n")
        return 128 + number if number in (signal.SIGINT, signal.SIGTERM) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
