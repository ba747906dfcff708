import pytest

from training import runs


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """The trace of the tiny run without any interruption."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert runs.finish(runs.start(runs.tiny(), out)) == [0]
    return runs.trace(out)
