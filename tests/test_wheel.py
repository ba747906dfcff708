"""The release: one pure-Python wheel that works where nothing but its dependencies is installed."""

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from mambar.version import __version__

ROOT = Path(__file__).parent.parent
# Beside modules: kernels, the self-test's golden cases, the style of reports, py.typed.
DATA = {".cu", ".cuh", ".safetensors", ".css", ".typed"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the tree without a network."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


def test_the_source_archive_takes_nothing_that_lies_around(tmp_path):
    """Data, runs and caches stand in a working tree too; only what is named goes out."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", str(tmp_path)]
    subprocess.run([*command[:-1], "--directory", command[-1]], cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = tmp_path.iterdir()
    with tarfile.open(built) as archive:
        tops = {Path(name).parts[1] for name in archive.getnames()}
    documents = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert tops == {"src", "docs", "examples", *documents}
    assert built.stat().st_size < 2_000_000


def test_it_is_pure_python_with_all_it_needs_and_no_more(wheel):
    assert wheel.name == f"mambar-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = email.message_from_bytes(archive.read(f"mambar-{__version__}.dist-info/METADATA"))
    sources = [path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix in {".py", *DATA}]
    assert {path.suffix for path in sources} == {".py", *DATA}
    assert {str(path.relative_to(ROOT / "src")) for path in sources} <= names
    assert {name.partition("/")[0] for name in names} == {"mambar", f"mambar-{__version__}.dist-info"}
    assert not [name for name in names if "test" in Path(name).name and name != "mambar/bench/self_test.py"]
    assert not [name for name in names if Path(name).suffix in {".so", ".pyc", ".pyd", ".pth", ".pkl"}]
    assert metadata["Version"] == __version__ and metadata["License-Expression"] == "Apache-2.0"
    assert wheel.stat().st_size < 2_000_000
    # A constraint above would keep out a machine that works.
    assert not [need for need in metadata.get_all("Requires-Dist", []) if "<" in need or "==" in need.partition(";")[0]]


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    files = [path for folder in ("src", "docs") for path in (ROOT / folder).rglob("*.py")]
    assigned = re.compile(r"^__version__\s*=", re.MULTILINE)
    assert [path.name for path in files if assigned.search(path.read_text("utf-8"))] == ["version.py"]
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)


def test_it_works_in_a_fresh_environment(wheel, tmp_path, need_program):
    place = tmp_path / "fresh"
    venv.create(place, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    # The dependencies of this environment are lent; its own way to mambar, a .pth file, is not followed from there.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    python = str(place / "bin" / "python")
    install = [need_program("uv"), "pip", "install", "--offline", "--no-deps", "--python", python, str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MAMBAR"))}

    def fresh(*words: str) -> str:
        done = subprocess.run(
            [str(place / "bin" / words[0]), *words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(place) in fresh("python", "-P", "-c", "import mambar; print(mambar.__file__)")
    assert fresh("mambar", "--version") == f"mambar {__version__}\n"
    found = json.loads(fresh("mambar", "doctor", "--json"))
    assert found["mambar"] == __version__
    assert len(found["self-test"]) > 3 and set(found["self-test"].values()) == {"right"}
    assert "parameters" in fresh("mambar", "info", "mambar_tiny_patch16_224")
