import importlib
import sys
import types

import pytest
import torch

import stub_kernel
from mambar.ops.dispatch import Backend
from op_inputs import TOLERANCES

STUBS = {
    "selective_scan": stub_kernel.Scan,
    "causal_conv1d": stub_kernel.Conv,
    "rms_norm": stub_kernel.Norm,
    "bidirectional_mix": stub_kernel.Mix,
}


@pytest.fixture
def stub_kernels(monkeypatch):
    """Puts a kernel backend named `stub` last in every table; it takes what a kernel may take, and float64."""
    for op, kernel in STUBS.items():
        module = types.ModuleType(f"stub_{op}")
        module.__dict__.update({name: getattr(kernel, name) for name in vars(kernel) if not name.startswith("_")})
        monkeypatch.setitem(sys.modules, module.__name__, module)
        interface = importlib.import_module(f"mambar.ops.{op}.interface")
        row = Backend(name="stub", module=f"stub_{op}", dtypes=tuple(TOLERANCES), kernel=True)
        monkeypatch.setattr(interface, "BACKENDS", (*interface.BACKENDS, row))


@pytest.fixture
def fresh_compiler():
    """Compiled graphs of other tests are forgotten, before and after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def nan_memory():
    """New memory is full of NaN, so that whatever is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert bool(torch.empty(1000).isnan().all())
    yield
    torch.use_deterministic_algorithms(False)
