"""The environment variables that torchrun sets; needs no torch."""

import os


def rank() -> int:
    """Rank of this process, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the run, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def max_restarts() -> int:
    """Number of times that torchrun may restart the run."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def num_restarts() -> int:
    """Number of times that torchrun has restarted the run."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
