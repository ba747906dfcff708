"""Compiles a kernel's LLVM IR to a callable function, and caches the object code between processes."""

import ctypes
import functools
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import llvmlite
import llvmlite.binding as llvm
import torch
from llvmlite import ir

from mambar.cache import read_object, write_object
from mambar.ops.llvm.machine import Machine, host_machine

ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Kernel(NamedTuple):
    """A compiled function, which runs tasks of the call at an address on this thread, and its own address."""

    run: Callable[[int], None]
    address: int


_compiling = threading.Lock()
_engines: list[llvm.ExecutionEngine] = []


@functools.cache
def get_kernel(module: ModuleType, dtype: torch.dtype, machine: Machine) -> Kernel:
    """The compiled function of a kernel for a dtype; compiles at the first use unless the cache holds its object code.

    `module` defines the names of its ARGUMENTS and `build_ir(machine, dtype)`; the IR function has the module's name.
    """
    with _compiling:
        name, dtype_name = module.__name__.rpartition(".")[2], str(dtype).removeprefix("torch.")
        key = f"{name}-{fingerprint(module.__name__, dtype_name, machine)}"
        code = read_object("llvm", key)
        if code is None:
            code = object_code(module.build_ir(machine, dtype_name), machine)
            write_object("llvm", key, code)
        return load(code, machine, name)


def object_code(module: ir.Module, machine: Machine) -> bytes:
    """The object code of a module built for a machine, which can differ from this host."""
    target, optimized = optimize(module, machine)
    return target.emit_object(optimized)


def optimize(module: ir.Module, machine: Machine) -> tuple[llvm.TargetMachine, llvm.ModuleRef]:
    """The target of a machine, and a module optimized for it."""
    target = _target(machine)
    parsed = llvm.parse_assembly(str(module))
    parsed.data_layout = str(target.target_data)
    parsed.verify()
    # The IR is already vectorized and unrolled. Higher levels compile a third longer and give no faster code.
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    passes = llvm.create_pass_builder(target, options)
    passes.getModulePassManager().run(parsed, passes)
    return target, parsed


def _target(machine: Machine) -> llvm.TargetMachine:
    if machine.family == host_machine().family:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(machine.triple)
    return target.create_target_machine(cpu=machine.cpu, features=machine.features, opt=3, reloc="pic", jit=True)


def load(code: bytes, machine: Machine, name: str) -> Kernel:
    """Loads object code for this host and returns the function `name`; it stays loaded until the process ends."""
    empty = llvm.parse_assembly(f'target triple = "{machine.triple}"')
    engine = llvm.create_mcjit_compiler(empty, _target(machine))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address = engine.get_function_address(name)
    return Kernel(ENTRY(address), address)


def fingerprint(module: str, dtype: str, machine: Machine) -> str:
    """A hash of everything that determines the object code.

    It covers the Python source of the kernels in place of their IR, because building IR is slower than loading code.
    """
    ops = Path(__file__).parents[1]
    files = sorted([*ops.glob("llvm/*.py"), *ops.glob("*/llvm*.py")])
    parts = [llvmlite.__version__, module, dtype, repr(machine), *(file.read_text("utf-8") for file in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
