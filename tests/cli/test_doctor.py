"""`mambar doctor`: everything that decides what can run, with reasons, and a self-test that can fail."""

import json

import torch


def test_it_says_what_is_here_and_that_the_numbers_are_right(mambar_command):
    code, out, _ = mambar_command("doctor", "--json")
    found = json.loads(out)
    assert code == 0 and set(found["self-test"].values()) == {"right"}
    assert {"scan on cpu: reference", "scan on cpu: doubling", "model on cpu: auto"} <= set(found["self-test"])
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert found["backends"]["selective_scan on cpu: reference"] == "ready"


def test_what_cannot_run_has_its_reason(mambar_command, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("importlib.metadata.version", _nothing)
    code, out, _ = mambar_command("doctor", "--quick", "--json")
    found = json.loads(out)
    assert code == 0 and "self-test" not in found
    assert found["backends"]["selective_scan on cuda: triton"] not in ("ready", "")
    assert set(found["packages"].values()) == {"not installed"}


def _nothing(name):
    import importlib.metadata

    raise importlib.metadata.PackageNotFoundError(name)


def test_caches_are_where_the_environment_puts_them(mambar_command, monkeypatch, tmp_path):
    monkeypatch.setenv("MAMBAR_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere/triton")
    _, out, _ = mambar_command("doctor", "--quick", "--json")
    caches = json.loads(out)["caches"]
    assert caches["mambar (MAMBAR_CACHE)"] == str(tmp_path / "kernels")
    assert caches["Triton (TRITON_CACHE_DIR)"] == "/somewhere/triton" and len(caches) == 4
    (tmp_path / "kernels").chmod(0o777)
    _, out, _ = mambar_command("doctor", "--quick", "--json")
    assert json.loads(out)["caches"]["mambar (MAMBAR_CACHE)"].startswith("unusable: ")


def test_a_failing_self_test_is_exit_1(mambar_command, monkeypatch):
    monkeypatch.setattr("mambar.bench.self_test._OUTPUT", 0.0)
    code, out, err = mambar_command("doctor")
    assert code == 1 and "the self-test failed: scan on cpu" in err and "deviates by" in out
