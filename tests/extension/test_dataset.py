"""A user's dataset in one file outside `src`, registered and trained on."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "extend" / "dataset.py"


def test_a_registered_dataset_is_trained_on(tmp_path):
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 40
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, cwd=tmp_path, timeout=500, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    [run] = (tmp_path / "runs").iterdir()
    assert '"data": "stripes"' in (run / "recipe.json").read_text("utf-8")
    assert (run / "model.safetensors").is_file()
