"""Description of the machine of a measurement: processor, GPU, versions."""

import os
import platform
from pathlib import Path

import torch

from mambar.version import __version__


def processor() -> str:
    """The CPU model name, as reported by the system."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(device: str) -> str:
    """One line: device, cores or GPU, versions."""
    versions = f"torch {torch.__version__}, mambar {__version__}, Python {platform.python_version()}"
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, {versions}"
    extension = torch.backends.cpu.get_cpu_capability()
    return f"{processor()} ({os.cpu_count()} cores, {extension}, {torch.get_num_threads()} threads used), {versions}"
