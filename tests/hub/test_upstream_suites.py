"""timm's tests/test_models.py and transformers' common model tests, run on the models of this package.

The suites are those of the installed versions, unpacked from the source distributions that pip downloads. The
environment variable MAMBAR_SUITES names a directory that has them already, unpacked, with the package `parameterized`.
Tests that do not apply are listed, with the reason, in `suite_timm.NOT_APPLICABLE` and
`suite_transformers.NOT_APPLICABLE`; transformers' tests of image processors, which want resizing options that are
fixed here, are not run at all.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def suites(tmp_path_factory) -> Path:
    if given := os.environ.get("MAMBAR_SUITES"):
        return Path(given).resolve()
    directory = tmp_path_factory.mktemp("suites")
    uvx = shutil.which("uvx")
    pip = [uvx, "pip"] if uvx else [sys.executable, "-m", "pip"]
    commands = [[*pip, "install", "-q", "--no-deps", "--target", str(directory), "parameterized"]]
    for name in ("timm", "transformers"):
        wanted = f"{name}=={importlib.metadata.version(name)}"
        commands.append([*pip, "download", "-q", "--no-deps", "--no-binary", name, "-d", str(directory), wanted])
    for command in commands:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600)
        if done.returncode:
            pytest.skip(f"the suites cannot be downloaded: {done.stderr.strip()[-200:]}")
    for archive in directory.glob("*.tar.gz"):
        with tarfile.open(archive) as packed:
            packed.extractall(directory, filter="data")
    return directory


@pytest.mark.parametrize(
    ("name", "arguments", "least"),
    [
        ("timm", ["-p", "suite_timm", "tests/test_models.py"], 70),
        ("transformers", [str(HERE / "suite_transformers.py")], 80),
    ],
)
def test_the_suite_passes_on_our_models(suites, tmp_path, name, arguments, least):
    source = suites / f"{name}-{importlib.metadata.version(name)}"
    (source / "tests" / "__init__.py").touch()
    empty = tmp_path / "pytest.ini"
    empty.write_text("[pytest]\n", "utf-8")
    paths = [source, suites, HERE, HERE.parents[1] / "src"]
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-c", str(empty), "--rootdir", str(source)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=source,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=7000,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least
