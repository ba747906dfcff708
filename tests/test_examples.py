"""The examples run as they are written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mambar
from mambar.data.transforms.classification import Preprocessing
from mambar.models import VisionMamba, VisionMambaConfig

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments, directory):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=500, encoding="utf-8")


@pytest.mark.slow
def test_minimal(tmp_path):
    done = run("mambar_minimal.py", directory=tmp_path)
    assert done.returncode == 0 and "logits (2, 10)" in done.stdout, done.stderr


@pytest.mark.slow
def test_classify(tmp_path):
    config = VisionMambaConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_registers=2, num_classes=3)
    mambar.save_model(
        tmp_path / "run",
        VisionMamba(config),
        classes=["ant", "bee", "cat"],
        preprocessing=Preprocessing(img_size=16),
    )
    Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    done = run("classify.py", tmp_path / "run", tmp_path / "image.png", directory=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr


@pytest.mark.slow
def test_see_the_artifacts(tmp_path):
    config = VisionMambaConfig(img_size=32, patch_size=8, embed_dim=16, depth=2, num_registers=3, num_classes=3)
    mambar.save_model(tmp_path / "run", VisionMamba(config))
    done = run("see_the_artifacts.py", tmp_path / "run", directory=tmp_path)
    assert done.returncode == 0 and "registers that see the same places" in done.stdout, done.stderr
    assert "max" in (tmp_path / "runs" / "artifacts.html").read_text("utf-8")
