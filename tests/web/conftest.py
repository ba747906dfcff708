"""A running page for the tests of `mambar.web`: two small models with hostile class names, traced by strace."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import mambar
from mambar.data import Preprocessing
from mambar.models import VisionMamba, VisionMambaConfig

HOSTILE = ("<img src=x onerror=document.title='owned'>", "{{value}} ${1+1}", "$x$ </script>", "ant", "日本")
SMALL = VisionMambaConfig(
    img_size=32, patch_size=8, embed_dim=16, depth=4, num_registers=3, register_reduction=2, num_classes=5, d_state=4
)


def save_small(directory: Path, *, seed: int = 0, **fields: object) -> Path:
    """A run directory with a small model in it."""
    torch.manual_seed(seed)
    model = VisionMamba(SMALL.replace(**fields))
    with torch.no_grad():
        model.head.classifier.weight.mul_(30)
    mambar.save_model(directory, model, classes=HOSTILE, preprocessing=Preprocessing(img_size=32))
    return directory


@dataclass
class Running:
    """A page that runs: where, its process, and what strace saw of its network."""

    address: str
    port: int
    process: subprocess.Popen
    trace: Path
    secret: Path
    temporary: Path
    log: Path


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start_page(directory: Path, *arguments: str, environment: dict[str, str] | None = None) -> Running:
    """`mambar serve` in a process of its own, in an environment that would open it wide if it were heard."""
    for name in ("home", "tmp"):
        (directory / name).mkdir()
    secret = directory / "home" / "secret.txt"
    secret.write_text("the planted secret of this test", "utf-8")
    port, trace, log = free_port(), directory / "trace", directory / "log"
    hostile = {
        **os.environ,
        "GRADIO_SHARE": "True",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_ALLOWED_PATHS": "/",
        "GRADIO_ANALYTICS_ENABLED": "True",
        "GRADIO_MCP_SERVER": "True",
        "TMPDIR": str(directory / "tmp"),
        # torch makes this directory on import; its default is in TMPDIR, which the page must leave empty.
        "TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"),
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    command = [sys.executable, "-m", "mambar", "serve", *arguments, f"--port={port}", "--device=cpu"]
    watched = ["strace", "-f", "-qq", "-e", "trace=connect,bind,sendto,sendmsg", "-e", "signal=none", "-o", str(trace)]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*watched, *command], cwd=directory / "home", env=hostile, stdout=output, stderr=subprocess.STDOUT
        )
    for _ in range(600):
        if "page: http" in log.read_text("utf-8"):
            break
        if process.poll() is not None:
            raise AssertionError(log.read_text("utf-8"))
        time.sleep(0.2)
    else:
        process.kill()
        raise AssertionError(f"the page did not start: {log.read_text('utf-8')}")
    return Running(f"http://127.0.0.1:{port}", port, process, trace, secret, directory / "tmp", log)


def stop_page(running: Running) -> int:
    """Ends the page as a terminal would; gives its exit code (strace hands it on)."""
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text("utf-8").split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    try:
        return running.process.wait(60)
    except subprocess.TimeoutExpired:
        running.process.kill()
        raise


@pytest.fixture(scope="session")
def running(tmp_path_factory, need_program):
    """A page with two models, shared by the tests of this folder."""
    need_program("strace")
    directory = tmp_path_factory.mktemp("page")
    first = save_small(directory / "mamba-r")
    second = save_small(
        directory / "vim", seed=1, placement="middle", head="token", num_registers=1, register_reduction=1, depth=2
    )
    page = start_page(directory, str(first), f"--compare={second}")
    yield page
    assert stop_page(page) == 143
    assert list(page.temporary.iterdir()) == []
