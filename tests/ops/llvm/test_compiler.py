import pytest
import torch

pytest.importorskip("llvmlite")

from mambar.cache import read_object
from mambar.ops.bidirectional_mix import llvm_backward as mix_backward
from mambar.ops.bidirectional_mix import llvm_convolutions
from mambar.ops.bidirectional_mix import llvm_forward as mix_forward
from mambar.ops.causal_conv1d import llvm_backward as conv_backward
from mambar.ops.causal_conv1d import llvm_forward as conv_forward
from mambar.ops.llvm import compiler, sums
from mambar.ops.llvm.launch import sum_parts
from mambar.ops.llvm.machine import NAMED_MACHINES, host_machine
from mambar.ops.rms_norm import llvm_norm
from mambar.ops.selective_scan import llvm_backward as scan_backward
from mambar.ops.selective_scan import llvm_forward as scan_forward

KERNELS = (
    scan_forward,
    scan_backward,
    conv_forward,
    conv_backward,
    mix_forward,
    mix_backward,
    llvm_convolutions,
    llvm_norm,
    sums,
)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__.removeprefix("mambar.ops."))
def test_arm64_code_is_generated(kernel, dtype):
    machine = NAMED_MACHINES["neon"]
    code = compiler.object_code(kernel.build_ir(machine, dtype), machine)
    # An ELF object for AArch64 (machine number 183).
    assert code[:4] == b"\x7fELF" and int.from_bytes(code[18:20], "little") == 183


@pytest.fixture
def new_process(tmp_path, monkeypatch):
    """An empty cache directory; calling the fixture clears the compiled kernels of this process."""
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path / "cache"))
    compiler.get_kernel.cache_clear()
    yield compiler.get_kernel.cache_clear
    compiler.get_kernel.cache_clear()


def test_the_second_process_compiles_nothing(new_process, monkeypatch):
    parts = torch.randn(3, 40)
    first = sum_parts(parts)
    new_process()
    monkeypatch.setattr(compiler, "object_code", lambda *_: pytest.fail("compiled again"))
    assert torch.equal(sum_parts(parts), first)


def test_damaged_code_is_compiled_again(new_process, tmp_path):
    parts = torch.randn(3, 40)
    first = sum_parts(parts)
    (file,) = (tmp_path / "cache" / "llvm").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    new_process()
    assert torch.equal(sum_parts(parts), first)
    assert read_object("llvm", file.stem) is not None


def test_kernels_run_without_a_cache_directory(new_process, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    parts = torch.randn(3, 40)
    torch.testing.assert_close(sum_parts(parts), parts.sum(0))
    assert not list((tmp_path / "cache").iterdir())


def test_the_fingerprint_covers_processor_dtype_and_source():
    module, host = scan_forward.__name__, host_machine()
    keys = {
        compiler.fingerprint(module, "float32", host),
        compiler.fingerprint(module, "bfloat16", host),
        compiler.fingerprint(module, "float32", NAMED_MACHINES["avx2"]),
        compiler.fingerprint(conv_forward.__name__, "float32", host),
    }
    assert len(keys) == 4
