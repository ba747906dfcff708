"""Examples that no other test runs are started as their first lines say."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mambar.hub import save_model
from mambar.models import VisionMamba, VisionMambaConfig

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_see_the_artifacts_writes_its_pictures(tmp_path):
    torch.manual_seed(0)
    config = VisionMambaConfig(img_size=32, patch_size=8, embed_dim=16, depth=2, num_registers=3, num_classes=3)
    save_model(tmp_path / "run", VisionMamba(config))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "see_the_artifacts.py"), str(tmp_path / "run")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "registers that see the same places" in done.stdout
    assert "max" in (tmp_path / "runs" / "artifacts.html").read_text("utf-8")
