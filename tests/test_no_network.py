"""P18: importing any module and asking any verb for help open no socket and need no network."""

import subprocess
import sys
from pathlib import Path

import pytest

from mambar.cli.main import app

SOURCE = Path(__file__).parent.parent / "src"
VERBS = sorted(str(command.name) for command in app.registered_commands)

GUARD = """
import os, sys
def guard(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        os.write(2, f"{event} {arguments[1:]}".encode())
        os._exit(77)
sys.addaudithook(guard)
"""
HELP = f"""
from mambar.cli.main import main
for arguments in [["--help"], ["--version"], *([verb, "--help"] for verb in {VERBS}), ["recipe", "--list"]]:
    try: main(arguments)
    except SystemExit as stop: assert not stop.code, (arguments, stop.code)
print("EVERY HELP SHOWN")
"""
# Each module by its file's place; an optional package that is not installed is no fault of the module's import.
IMPORTS = f"""
import importlib
from pathlib import Path
source = Path({str(SOURCE)!r})
count = 0
for path in sorted((source / "mambar").rglob("*.py")):
    name = ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
    if name.endswith("__main__"):
        continue
    try: importlib.import_module(name)
    except ModuleNotFoundError as error: assert not (error.name or "").startswith("mambar"), error
    count += 1
assert count > 200, count
print("EVERY MODULE IMPORTED")
"""


def python(code: str, *before: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, encoding="utf-8"
    )


def test_no_help_opens_a_socket():
    assert len(VERBS) > 12
    done = python(GUARD + HELP)
    assert done.returncode == 0 and "EVERY HELP SHOWN" in done.stdout, done.stderr


@pytest.mark.slow
def test_no_import_opens_a_socket():
    done = python(GUARD + IMPORTS)
    assert done.returncode == 0 and "EVERY MODULE IMPORTED" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')",
    ],
)
def test_the_guard_sees_a_socket(code):
    assert python(GUARD + code).returncode == 77


@pytest.mark.rel
def test_help_needs_no_network(need_program, need_root):
    done = python("import mambar\n" + HELP, need_program("unshare"), "--net")
    assert done.returncode == 0 and "EVERY HELP SHOWN" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.rel
def test_no_process_of_an_import_reaches_for_an_address(need_program, tmp_path):
    """The guard sees one Python process only; strace sees native code and children too."""
    strace = need_program("strace")

    def addresses(name: str, code: str) -> list[str]:
        trace = tmp_path / name
        done = python(code, strace, "-f", "-qq", "-e", "trace=socket,connect,sendto", "-o", str(trace))
        assert done.returncode == 0, done.stderr
        return [line for line in trace.read_text("utf-8").splitlines() if "AF_INET" in line]

    assert addresses("imports", HELP + IMPORTS) == []
    assert addresses("control", "import socket; socket.socket()")
