"""Compiles the CUDA C++ sources of this directory with NVRTC and caches the machine code."""

import functools
import hashlib
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mambar.cache import read_object, write_object

SOURCES = Path(__file__).parent
OLDEST_CAPABILITY = (8, 0)


def missing() -> str | None:
    """None, or the reason why the CUDA C++ kernels cannot run on this machine."""
    if torch.version.cuda is None:
        return "this PyTorch was not built for CUDA"
    if not torch.cuda.is_available():
        return "no NVIDIA GPU was found"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, 8.0 is needed"
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        return "the package cuda-core is not installed (extra cuda); pip install 'cuda-core[cu13]'"
    return None


@functools.cache
def core() -> ModuleType:
    """The module cuda.core of NVIDIA."""
    return importlib.import_module("cuda.core")


def compile_kernel(source: str, capability: tuple[int, int], **macros: int) -> bytes:
    """Machine code of `source`.cu with the given macros for a compute capability; needs no GPU."""
    settings = core().ProgramOptions(
        arch=f"sm_{capability[0]}{capability[1]}",
        std="c++17",
        define_macro=[(name, str(value)) for name, value in macros.items()],
    )
    return bytes(core().Program(read_source(source), "c++", settings).compile("cubin").code)


def read_source(source: str) -> str:
    """The text of `source`.cu, after that of the headers it uses."""
    return "".join((SOURCES / name).read_text("utf-8") for name in _files(source))


@functools.cache
def load_kernel(source: str, function: str, device: int, shared: int, macros: tuple[tuple[str, int], ...]) -> Any:
    """A kernel to launch on a device with up to `shared` bytes of dynamic shared memory."""
    capability = torch.cuda.get_device_capability(device)
    key = f"{source}-{_fingerprint(source, capability, macros)}"
    code = read_object("cuda", key)
    if code is None:
        code = compile_kernel(source, capability, **dict(macros))
        write_object("cuda", key, code)
    kernel = core().ObjectCode.from_cubin(code).get_kernel(function)
    if shared > 48 * 1024:
        _allow_shared_memory(kernel, device, shared)
    return kernel


def _allow_shared_memory(kernel: Any, device: int, shared: int) -> None:
    driver = importlib.import_module("cuda.bindings.driver")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(
        attribute, shared, driver.CUkernel(int(kernel.handle)), driver.CUdevice(device)
    )
    if int(status) != 0:
        raise RuntimeError(f"device {device} does not allow {shared} bytes of shared memory per block: {status}.")


def _files(source: str) -> tuple[str, ...]:
    return "math.cuh", "memory.cuh", f"{source}.cu"


def _fingerprint(source: str, capability: tuple[int, int], macros: tuple[tuple[str, int], ...]) -> str:
    compiler = importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()[1:]
    digest = hashlib.sha256(repr((capability, macros, compiler)).encode())
    for name in _files(source):
        digest.update((SOURCES / name).read_bytes())
    return digest.hexdigest()[:32]
