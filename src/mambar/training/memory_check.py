"""Refuses a model that does not fit in memory, before it is built."""

import os
from pathlib import Path

from mambar.errors import InputError
from mambar.models.complexity import parameter_count
from mambar.models.config import VisionMambaConfig

# Bytes per parameter: float32 weight and gradient, and two AdamW moments.
_TRAINING_BYTES = 16


def check_memory(config: VisionMambaConfig, *, available: int | None = None) -> None:
    """Raises InputError, with the size of the model, if training it needs more memory than is available.

    Counts parameters, gradients and optimizer state, not activations. available: bytes, by default those that the
    system reports; nothing is checked if it reports none.
    """
    parameters = parameter_count(config)
    needed = parameters * _TRAINING_BYTES
    free = available_memory() if available is None else available
    if free is not None and needed > free:
        raise InputError(
            f"the model has {parameters:,} parameters and needs {needed / 2**30:,.1f} GiB to train; "
            f"{free / 2**30:,.1f} GiB are available. Use a smaller depth or embed_dim."
        )


def available_memory() -> int | None:
    """Bytes of main memory that are available, None if the system does not report it."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
