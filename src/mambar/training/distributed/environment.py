"""What torchrun tells its processes through the environment; needs no torch."""

import os


def rank() -> int:
    """This process's number, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the run has, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_restarts() -> int:
    """How often torchrun has restarted the run."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
