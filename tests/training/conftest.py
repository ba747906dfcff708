import subprocess

import pytest

from training import runs


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """The trace of the tiny run without any interruption."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert runs.finish(runs.start(runs.tiny(), out)) == [0]
    return runs.trace(out)


@pytest.fixture
def small_disk(tmp_path, need_root):
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)
