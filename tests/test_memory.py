"""keep_freed_memory keeps freed memory in the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from mambar.memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1] == "keep":
    assert keep_freed_memory() is True
size = 100 << 20

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize("kept", [True, False])
def test_a_large_block_is_allocated_from_the_system_once(kept):
    command = [sys.executable, "-c", PROGRAM, "keep" if kept else "default"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, encoding="utf-8")
    # 100 MiB are 25,600 pages (50 if the system uses huge pages).
    pages = int(done.stdout)
    assert pages < 20 if kept else pages >= 50


def test_other_systems_return_false(monkeypatch):
    from mambar import memory

    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
