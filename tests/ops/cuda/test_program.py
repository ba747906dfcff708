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
    "BLOCKS": 8,
    "SOFTPLUS": 1,
    "GATED": 1,
    "KEPT": 0,
    "REVERSE": 0,
}
BACKWARD = {"SOFTPLUS": 1, "REVERSE": 1}
WHOLE = {"STAGED": 1, "WHOLE_ROWS": 1, "WHOLE_A": 1}
ODD = {"STAGED": 0, "WHOLE_ROWS": 0, "WHOLE_A": 0}
CASES = [
    ("gate", {"SCALAR": 1, "CHANNELS": 4, "GATED": 1}),
    ("scan_forward", {**FORWARD, **WHOLE, "SCALAR": 1, "LANES": 1, "WAYS": 2}),
    ("scan_forward", {**FORWARD, **ODD, "SCALAR": 2, "LANES": 4, "WAYS": 1}),
    ("scan_backward", {**BACKWARD, **WHOLE, "SCALAR": 1, "WAYS": 2, "TENSOR": 1}),
    ("scan_backward", {**BACKWARD, **ODD, "SCALAR": 0, "WAYS": 1, "TENSOR": 0}),
    (
        "conv",
        {
            "SCALAR": 0,
            "CHANNELS": 2,
            "AHEAD": 4,
            "BLOCKS": 4,
            "TAPS": 4,
            "WHOLE_TAPS": 1,
            "WAYS": 2,
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


def test_another_source_setting_or_gpu_is_another_file(monkeypatch, tmp_path):
    pytest.importorskip("cuda.bindings")
    found = {
        program._fingerprint(source, capability, macros)
        for source in ("gate", "conv")
        for capability in ((8, 0), (9, 0))
        for macros in ((("SCALAR", 0),), (("SCALAR", 1),))
    }
    assert len(found) == 8


def test_reasons_are_given_one_by_one(monkeypatch):
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
    assert "mambar[cuda]" in str(program.missing())
