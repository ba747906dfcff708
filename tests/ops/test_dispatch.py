import logging

import pytest
import torch

from mambar import ops
from mambar.errors import BackendUnavailable
from mambar.ops import dispatch
from mambar.ops.dispatch import Backend, available_backends, backends, resolve, use_backend
from mambar.ops.selective_scan import interface
from op_inputs import scan_inputs, without_shape_hook

CPU = torch.device("cpu")
F32 = (torch.float32,)


def chosen(asked="auto", *, op="selective_scan", device=CPU, dtype=torch.float32, **more):
    return resolve(op, asked, device=device, dtype=dtype, **more)


@pytest.fixture
def table(monkeypatch):
    """A test table: a kernel whose package is missing, one without hardware, a plain backend, a traceable one."""
    rows = (
        Backend(
            name="fast", module="no.such", devices=("cpu",), dtypes=F32, requires=("no_such_package",), kernel=True
        ),
        Backend(name="odd", module="no.such", dtypes=F32, requires=(lambda: "no hardware for it",), kernel=True),
        Backend(name="plain", module="no.such", dtypes=F32),
        Backend(name="wide", module="no.such", dtypes=(torch.float32, torch.float64), traceable=True),
    )
    monkeypatch.setattr(interface, "BACKENDS", rows)
    monkeypatch.delenv("MAMBAR_BACKEND", raising=False)
    return rows


def test_the_first_that_fits_is_chosen(table):
    assert chosen() == "plain"
    assert chosen(dtype=torch.float64) == "wide"


def test_the_argument_precedes_the_context_which_precedes_the_environment(table, monkeypatch):
    monkeypatch.setenv("MAMBAR_BACKEND", "reference")
    monkeypatch.setattr(interface, "BACKENDS", (*table, Backend(name="reference", module="no.such", dtypes=F32)))
    assert chosen() == "reference"
    with use_backend("wide"):
        assert chosen() == "wide"
        assert chosen("plain") == "plain"
        with use_backend("auto"):
            assert chosen() == "plain"
        assert chosen() == "wide"
    assert chosen() == "reference"


def test_a_backend_asked_for_that_cannot_run_raises_with_the_reason(table, monkeypatch):
    with pytest.raises(BackendUnavailable, match=r"fast.*no_such_package is not installed"):
        chosen("fast")
    with pytest.raises(BackendUnavailable, match="no hardware for it"), use_backend("odd"):
        chosen()
    with pytest.raises(BackendUnavailable, match=r"takes float32, not torch.float64"):
        chosen("plain", dtype=torch.float64)
    with pytest.raises(BackendUnavailable, match="runs on cpu, the tensors are on cuda"):
        chosen("fast", device=torch.device("cuda"))
    monkeypatch.setenv("MAMBAR_BACKEND", "fast")
    with pytest.raises(BackendUnavailable, match="no_such_package"):
        chosen()


def test_no_suitable_backend_raises(table):
    with pytest.raises(BackendUnavailable, match=r"no backend takes torch.float16"):
        chosen(dtype=torch.float16)


def test_an_unknown_name_is_refused_wherever_it_comes_from(monkeypatch):
    with pytest.raises(ValueError, match="backend='fastest' is not one of selective_scan"):
        chosen("fastest")
    with pytest.raises(ValueError, match="use_backend: no op has a backend 'fastest'"), use_backend("fastest"):
        pass
    monkeypatch.setenv("MAMBAR_BACKEND", "fastest")
    with pytest.raises(ValueError, match="MAMBAR_BACKEND: no op has a backend 'fastest'"):
        chosen()
    with pytest.raises(ValueError, match="op='scan' is not known"):
        available_backends("scan")


def test_an_op_without_the_named_backend_chooses_automatically(monkeypatch):
    monkeypatch.delenv("MAMBAR_BACKEND", raising=False)
    with use_backend("doubling"):
        assert chosen(op="rms_norm") == chosen("auto", op="rms_norm")
        assert chosen() == "doubling"
        assert chosen(op="bidirectional_mix", otherwise="composed") == "composed"


def test_an_automatic_fallback_is_logged_once(table, caplog):
    with caplog.at_level(logging.INFO, "mambar.ops"):
        dispatch._log_once.cache_clear()
        chosen()
        chosen()
    messages = [record.message for record in caplog.records]
    assert len(messages) == len(set(messages)) == 2
    assert "'fast' cannot run here: the package no_such_package is not installed; using 'plain'" in messages[0]


def test_available_backends_say_what_is_missing(table):
    found = {row.name: row.missing for row in available_backends("selective_scan", "cpu")}
    assert list(found) == ["fast", "odd", "plain", "wide"]
    assert found["fast"] == "the package no_such_package is not installed"
    assert found["odd"] == "no hardware for it" and found["plain"] is None
    assert [row.name for row in available_backends("selective_scan", torch.device("cuda", 0))] == [
        "odd",
        "plain",
        "wide",
    ]


@pytest.mark.parametrize("op", dispatch.OPS)
def test_every_table_ends_with_a_reference_for_every_type_on_every_device(op):
    last = backends(op)[-1]
    assert (last.name, last.devices, last.traceable, last.missing) == ("reference", (), True, None)
    assert len(last.dtypes) == 4
    names = [row.name for row in backends(op)]
    assert len(set(names)) == len(names)


def test_tracing_uses_traceable_backends(table):
    for mode, expected in (("compiled", "wide"), ("exported", "wide"), ("transformed", "wide"), ("eager", "plain")):
        assert dispatch._choose("selective_scan", "auto", None, "cpu", torch.float32, None, mode) == expected
    with pytest.raises(BackendUnavailable, match="cannot be traced"):
        dispatch._choose("selective_scan", "plain", None, "cpu", torch.float32, None, "compiled")
    assert dispatch._choose("selective_scan", "auto", None, "meta", torch.float32, None, "eager") == "wide"


def test_a_kernel_is_allowed_in_a_compiled_graph_but_not_in_an_exported_one(table, monkeypatch):
    kernel = Backend(name="kernel", module="no.such", dtypes=F32, kernel=True)
    monkeypatch.setattr(interface, "BACKENDS", (kernel, *table))
    assert dispatch._choose("selective_scan", "auto", None, "cpu", torch.float32, None, "compiled") == "kernel"
    assert dispatch._choose("selective_scan", "auto", None, "cpu", torch.float32, None, "exported") == "wide"


def test_threads_do_not_share_the_active_name():
    import threading

    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(dispatch._active_name.get()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.slow
def test_importing_the_ops_does_not_import_the_compiler():
    import subprocess
    import sys

    code = "import sys, mambar.ops; assert 'torch._dynamo' not in sys.modules; assert 'llvmlite' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ops.Backend is Backend


@without_shape_hook
def test_a_compiled_function_follows_the_active_name(fresh_compiler):
    sizes = []

    def record(graph, example_inputs):
        sizes.append(len(graph.graph.nodes))
        return graph

    tensors = list(scan_inputs(1, 9, 3, 2).values())
    scan = torch.compile(ops.selective_scan_with_state, fullgraph=True, backend=record)
    for name in ("doubling", "reference", "doubling"):
        with use_backend(name):
            scan(*tensors)
    assert len(sizes) == 2 and sizes[0] != sizes[1]
