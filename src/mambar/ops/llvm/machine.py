"""The target processor: its vector width and the instructions that decide which code is generated."""

import functools
import os
from dataclasses import dataclass

import llvmlite.binding as llvm

from mambar.errors import InputError


# Compared by identity: a machine is looked up at every launch, and there is one object of each.
@dataclass(frozen=True, kw_only=True, eq=False)
class Machine:
    """A compilation target: LLVM's triple, processor and features, and the number of float32 lanes of a vector."""

    triple: str
    cpu: str
    features: str
    lanes: int
    scale_and_estimate: bool = False
    """Whether to use AVX-512's instructions for `x * 2**k` and an estimate of `1 / x`."""

    @property
    def family(self) -> str:
        """The architecture, the first part of the triple: x86_64, aarch64, …"""
        return self.triple.split("-")[0].replace("arm64", "aarch64")


# Targets that MAMBAR_LLVM_MACHINE and the tests can select in place of the host.
NAMED_MACHINES = {
    "sse": Machine(triple="x86_64-unknown-linux-gnu", cpu="x86-64", features="", lanes=4),
    "avx2": Machine(triple="x86_64-unknown-linux-gnu", cpu="x86-64-v3", features="", lanes=8),
    "avx512": Machine(
        triple="x86_64-unknown-linux-gnu", cpu="x86-64-v4", features="", lanes=16, scale_and_estimate=True
    ),
    "avx512-integer": Machine(triple="x86_64-unknown-linux-gnu", cpu="x86-64-v4", features="", lanes=16),
    "neon": Machine(triple="aarch64-unknown-linux-gnu", cpu="generic", features="", lanes=4),
}


def current_machine() -> Machine:
    """The host, or the machine that the environment variable MAMBAR_LLVM_MACHINE names."""
    name = os.environ.get("MAMBAR_LLVM_MACHINE", "host")
    if name == "host":
        return host_machine()
    if name not in NAMED_MACHINES:
        allowed = ", ".join(["host", *NAMED_MACHINES])
        raise InputError(
            f"MAMBAR_LLVM_MACHINE={name!r} is not a known machine; allowed are {allowed}. Use one of them or unset it."
        )
    return NAMED_MACHINES[name]


@functools.cache
def host_machine() -> Machine:
    """The processor of this process, as LLVM detects it."""
    features = llvm.get_host_cpu_features()
    cpu = llvm.get_host_cpu_name()
    if features.get("avx512f") and features.get("avx512dq"):
        lanes = 16
    elif features.get("avx2") and features.get("fma"):
        lanes = 8
    else:
        lanes = 4
    return Machine(
        triple=llvm.get_process_triple(),
        cpu=cpu,
        features=features.flatten(),
        lanes=lanes,
        # On AMD processors (Zen 5) only the other form was measured.
        scale_and_estimate=lanes == 16 and not cpu.startswith("znver"),
    )
