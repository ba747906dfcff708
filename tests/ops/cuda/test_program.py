"""CUDA C++ sources compile without a GPU, and compiled code is read from the cache."""

from types import SimpleNamespace

import pytest
import torch

from mambar.ops.cuda import program

FORWARD = {
    "STEPS": 8,
    "RING": 3,
    "CHANNELS": 1,
    "THREADS": 64,
    "MIN_BLOCKS": 8,
    "SOFTPLUS": 1,
    "GATED": 1,
    "SAVE_PREGATE": 0,
    "REVERSE": 0,
    "STATES_ONLY": 0,
    "ADJOINT": 0,
    "SAVE_STATES": 0,
}
STATES = {**FORWARD, "GATED": 0, "STATES_ONLY": 1, "ADJOINT": 1}
BACKWARD = {"SOFTPLUS": 1, "REVERSE": 1, "SEGMENTED": 1}
ALIGNED = {"ASYNC_COPY": 1, "ALIGNED_BC": 1, "ALIGNED_A": 1}
UNALIGNED = {"ASYNC_COPY": 0, "ALIGNED_BC": 0, "ALIGNED_A": 0}
CASES = [
    ("gate", {"SCALAR": 1, "CHANNELS": 4, "GATED": 1}),
    ("scan_forward", {**FORWARD, **ALIGNED, "SCALAR": 1, "LANES": 1, "DIRECTIONS": 2}),
    ("scan_forward", {**FORWARD, **UNALIGNED, "SCALAR": 2, "LANES": 4, "SAVE_STATES": 1, "DIRECTIONS": 1}),
    ("scan_forward", {**STATES, **ALIGNED, "SCALAR": 1, "LANES": 1, "DIRECTIONS": 2}),
    ("scan_backward", {**BACKWARD, **ALIGNED, "SCALAR": 1, "DIRECTIONS": 2, "TENSOR_CORES": 1}),
    ("scan_backward", {**BACKWARD, **UNALIGNED, "SCALAR": 0, "DIRECTIONS": 1, "TENSOR_CORES": 0}),
    (
        "conv",
        {
            "SCALAR": 0,
            "CHANNELS": 2,
            "PREFETCH": 4,
            "MIN_BLOCKS": 4,
            "TAPS": 4,
            "ALIGNED_TAPS": 1,
            "DIRECTIONS": 2,
            "REVERSE": 0,
            "SILU": 1,
            "THREADS": 128,
        },
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize(("source", "macros"), CASES, ids=[f"{source}-{i}" for i, (source, _) in enumerate(CASES)])
def test_sources_compile_without_a_gpu(source, macros, capability):
    pytest.importorskip("cuda.core")
    assert program.compile_kernel(source, capability, **macros).startswith(b"\x7fELF")


def test_compiled_code_is_read_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path))
    loaded = []

    class ObjectCode:
        @staticmethod
        def from_cubin(code):
            loaded.append(code)
            return SimpleNamespace(get_kernel=lambda function: function)

    monkeypatch.setattr(program, "core", lambda: SimpleNamespace(ObjectCode=ObjectCode))
    monkeypatch.setattr(program, "_fingerprint", lambda *_: "digest")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(program, "compile_kernel", lambda *_, **macros: b"code")
    program.load_kernel.__wrapped__("conv", "conv_forward", 0, 0, ())
    assert [path.name for path in (tmp_path / "cuda").iterdir()] == ["conv-digest.object"]
    monkeypatch.setattr(program, "compile_kernel", lambda *_, **macros: pytest.fail("compiled again"))
    assert program.load_kernel.__wrapped__("conv", "conv_forward", 0, 0, ()) == "conv_forward"
    assert loaded == [b"code", b"code"]


def test_source_macros_and_capability_change_the_fingerprint(monkeypatch, tmp_path):
    pytest.importorskip("cuda.bindings")
    found = {
        program._fingerprint(source, capability, macros)
        for source in ("gate", "conv")
        for capability in ((8, 0), (9, 0))
        for macros in ((("SCALAR", 0),), (("SCALAR", 1),))
    }
    assert len(found) == 8


def test_each_missing_requirement_has_its_reason(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "not built for CUDA" in str(program.missing())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no NVIDIA GPU" in str(program.missing())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "7.5" in str(program.missing())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
    assert "(extra cuda); pip install" in str(program.missing())
