"""What the C library does with memory that was freed: give it back to the system, or keep it for the next tensor."""

import sys

# malloc.h of glibc: what mallopt takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Larger blocks still go back to the system one by one.
_LARGEST_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Lets this process keep memory that it freed, up to blocks of 1 GiB; says whether the C library can (glibc does).

    By default glibc hands large blocks back and takes them anew, page by page, for every tensor of every layer: a fifth
    of the time of Base's forward pass on a CPU. The process holds its peak until it ends; the peak does not change. It
    concerns the whole process: the command line and benchmarks call it, the library never does by itself.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
