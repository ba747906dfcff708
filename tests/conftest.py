"""What all tests share: marks, needs of the machine, shape checking on demand."""

import os
import shutil

import pytest

# Workers side by side have a processor each; more threads than processors wait for one another in a busy loop, which
# made the whole suite take twice its time.
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# `make shapes` sets this; the hook must be in place before any module of the package is imported.
if os.environ.get("MAMBAR_SHAPES"):
    from jaxtyping import install_import_hook

    install_import_hook("mambar", "beartype.beartype")


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="also run the long counts (mark `soak`)")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--soak"):
        soak = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def need(there: bool, what: str) -> None:
    """Skips a test where the machine lacks something; in CI that is a failure, since `.ci/run` installs it."""
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {what}, which CI must have")
    pytest.skip(f"needs {what}")


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Every run of a test draws the same numbers: a sum that nearly cancels must not fail once in a hundred runs."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def need_program():
    """A function that skips (in CI: fails) unless a program is installed, under one of its names; gives its path."""

    def look(*names: str) -> str:
        found = [path for path in map(shutil.which, names) if path is not None]
        need(bool(found), f"the program {' or '.join(names)}")
        return found[0]

    return look


@pytest.fixture
def need_root():
    """Skips (in CI: fails) unless the test runs as root, which tmpfs mounts need."""
    need(hasattr(os, "geteuid") and os.geteuid() == 0, "root")


@pytest.fixture
def need_package():
    """A function that skips (in CI: fails) unless an optional package can be imported."""

    def look(name: str) -> None:
        import importlib.util

        need(importlib.util.find_spec(name) is not None, f"the package {name}")

    return look
