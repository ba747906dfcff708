"""Code for 64-bit ARM: vector instructions in every kernel, and their results in an emulator if there is one.

The emulator needs `apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross`.
"""

import ctypes
import gc
import importlib
import re
import shutil
import struct
import subprocess

import pytest
import torch

pytest.importorskip("llvmlite")

from mambar.ops import ScanDirection, add_rms_norm, bidirectional_mix, causal_conv1d, selective_scan
from mambar.ops.llvm import compiler
from mambar.ops.llvm.machine import NAMED_MACHINES
from op_inputs import relative_error

NEON = NAMED_MACHINES["neon"]
NAMES = (
    *("selective_scan.llvm_forward", "selective_scan.llvm_backward", "rms_norm.llvm_norm", "llvm.sums"),
    *("causal_conv1d.llvm_forward", "causal_conv1d.llvm_backward"),
    *("bidirectional_mix.llvm_forward", "bidirectional_mix.llvm_backward", "bidirectional_mix.llvm_convolutions"),
)
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"

# Reads arguments and memory, replaces offsets into the memory by addresses, runs the kernel, prints the memory.
MAIN = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
void KERNEL(int64_t *call);
int main(void) {
    int64_t head[3];
    if (fread(head, 8, 3, stdin) != 3) return 1;
    int64_t count = head[0], bytes = head[1], scratch = head[2];
    int64_t *call = malloc(8 * (4 + count)), *is_offset = malloc(8 * count);
    char *memory = aligned_alloc(64, bytes);
    if (fread(is_offset, 8, count, stdin) != count || fread(call + 4, 8, count, stdin) != count) return 1;
    if (fread(memory, 1, bytes, stdin) != bytes) return 1;
    for (int64_t i = 0; i < count; i++) call[4 + i] += is_offset[i] ? (int64_t)memory : 0;
    call[0] = call[1] = call[3] = 0;
    call[2] = (int64_t)aligned_alloc(64, scratch);
    KERNEL(call);
    return fwrite(memory, 1, bytes, stdout) != bytes;
}
"""


def kernel_module(name):
    return importlib.import_module(f"mambar.ops.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_has_vector_instructions_of_four_floats(name):
    target, module = compiler.optimize(kernel_module(name).build_ir(NEON, "float32"), NEON)
    lines = target.emit_assembly(module).splitlines()
    # v0.4s is a register of four float32. Sums have no product.
    wanted = r"\sfadd\s+v\d+\.4s" if name == "llvm.sums" else r"\sfmla\s+v\d+\.4s"
    assert any(re.search(wanted, line) for line in lines)
    called = {line.split()[1] for line in lines if re.match(r"\s+bl\s", line)}
    assert called <= {f"{name.rpartition('.')[2]}_tasks", "memset"}


def run_in_emulator(module, values, scratch_floats, folder):
    """Runs a kernel in the emulator, on copies of all storages that its arguments point into."""
    program = folder / module.__name__
    if not program.exists():
        (folder / "main.c").write_text(MAIN, encoding="utf-8")
        (folder / "kernel.o").write_bytes(compiler.object_code(module.build_ir(NEON, "float32"), NEON))
        kernel = module.__name__.rpartition(".")[2]
        files = [folder / "main.c", folder / "kernel.o", "-o", program]
        subprocess.run([COMPILER, "-static", "-O1", f"-DKERNEL={kernel}", *files], check=True)
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter) and each.is_cpu]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    offsets, memory, is_offset, arguments = {}, b"", [], []
    for value in values:
        start = next((s for s, each in storages.items() if s <= value < s + each.nbytes()), None)
        if start is not None and start not in offsets:
            offsets[start] = len(memory)
            content = ctypes.string_at(start, storages[start].nbytes())
            memory += content + bytes(-len(content) % 64)
        is_offset.append(int(start is not None))
        arguments.append(value if start is None else value - start + offsets[start])
    head = struct.pack("3q", len(values), len(memory), max(64, -(-scratch_floats // 16) * 64))
    given = head + struct.pack(f"{2 * len(values)}q", *is_offset, *arguments) + memory
    after = subprocess.run([EMULATOR, program], input=given, stdout=subprocess.PIPE, check=True).stdout
    for start, offset in offsets.items():
        ctypes.memmove(start, after[offset:], storages[start].nbytes())


def draw(*shape):
    return torch.randn(shape)


def run_all():
    """Outputs and gradients of every kernel, with whole blocks of channels and a rest, on several chunks of steps."""
    torch.manual_seed(0)
    inner, state, length, rank = 23, 4, 37, 3
    u, z = draw(2, length, inner).requires_grad_(), draw(2, length, inner)
    A = -draw(inner, state).exp()
    scan = (u, draw(2, length, inner), A, draw(2, length, state), draw(2, length, state), draw(inner), z, draw(inner))
    outputs = [selective_scan(*scan, delta_softplus=True)]
    outputs.append(causal_conv1d(u, draw(inner, 4), draw(inner), reverse=True))
    sizes = ((inner, 4), (inner,), (rank + 2 * state, inner), (inner, rank), (inner,))
    ways = [ScanDirection(*(draw(*size) / 4 for size in sizes), A, draw(inner)) for _ in range(2)]
    xz = draw(2, length, 2 * inner).requires_grad_()
    outputs.append(bidirectional_mix(xz, *ways))
    gradients = torch.autograd.grad(sum(output.square().sum() for output in outputs), (u, xz))
    with torch.no_grad():
        outputs += add_rms_norm(draw(19, inner), draw(19, inner), draw(inner))
        mix = kernel_module("bidirectional_mix.llvm")
        outputs.append(mix.infer(xz, *(way._replace(A=torch.log(-A)) for way in ways), average=True))
    return [*outputs, *gradients]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}")
def test_the_results_in_an_emulator_are_those_of_this_machine(monkeypatch, tmp_path):
    # Four lanes too, so that the arguments are the same.
    monkeypatch.setenv("MAMBAR_LLVM_MACHINE", "sse")
    expected, ran = run_all(), set()

    def emulate(machine, module, dtype, values, *, scratch_floats=0, max_threads=None):
        run_in_emulator(module, values, scratch_floats, tmp_path)
        ran.add(module.__name__.removeprefix("mambar.ops."))

    for name in ("llvm.launch", "bidirectional_mix.llvm_scans"):
        monkeypatch.setattr(kernel_module(name), "launch_in_order", emulate)
    for found, right in zip(run_all(), expected, strict=True):
        assert relative_error(found, right) <= 2e-6
    assert ran == set(NAMES)
