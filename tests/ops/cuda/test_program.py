"""CUDA C++ sources compile without a GPU, and compiled code is kept where only this user can write."""

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


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path))
    program._cache_directory.cache_clear()
    yield tmp_path / "mambar" / "cuda"
    program._cache_directory.cache_clear()


def test_the_cache_is_made_private(cache):
    assert program._cache_directory() == cache
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_others_can_write_to_is_not_used(cache, caplog):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert program._cache_directory() is None
    assert "others can write" in caplog.text


def test_a_cache_behind_a_link_is_not_used(cache, tmp_path):
    cache.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    assert program._cache_directory() is None


def test_no_cache_is_no_failure(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path / "file"))
    program._cache_directory.cache_clear()
    assert program._cache_directory() is None
    program._cache_directory.cache_clear()


def test_code_is_written_whole(tmp_path):
    program._write_atomically(tmp_path / "kernel.cubin", b"code")
    assert (tmp_path / "kernel.cubin").read_bytes() == b"code"
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.cubin"]


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
