import pytest

pytest.importorskip("llvmlite")

from mambar.errors import InputError
from mambar.ops.llvm.machine import NAMED_MACHINES, current_machine, host_machine


def test_the_environment_selects_the_machine(monkeypatch):
    monkeypatch.delenv("MAMBAR_LLVM_MACHINE", raising=False)
    assert current_machine() == host_machine()
    monkeypatch.setenv("MAMBAR_LLVM_MACHINE", "avx2")
    assert current_machine() is NAMED_MACHINES["avx2"]


def test_an_unknown_machine_is_rejected_with_the_allowed_ones(monkeypatch):
    monkeypatch.setenv("MAMBAR_LLVM_MACHINE", "abacus")
    with pytest.raises(InputError, match="host, sse, avx2"):
        current_machine()
