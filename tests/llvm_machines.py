"""The named machines that this host can run, for the tests of the LLVM kernels."""

import pytest

pytest.importorskip("llvmlite")

from mambar.ops.llvm.machine import NAMED_MACHINES, Machine, host_machine


def _runs(machine: Machine) -> bool:
    host = host_machine()
    return machine.family == host.family and machine.lanes <= host.lanes


MACHINES = {"host": host_machine(), **{name: m for name, m in NAMED_MACHINES.items() if _runs(m)}}
every_machine = pytest.mark.parametrize("machine", MACHINES)
