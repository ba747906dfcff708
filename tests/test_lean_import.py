"""`import mambar`, `--help` and `--version` import nothing heavy."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "timm",
    "torchvision",
    "matplotlib",
    "sklearn",
    "skimage",
    "triton",
    "transformers",
    "gradio",
)


def modules_after(code: str) -> set[str]:
    probe = f"import sys\n{code}\nprint('MODULES', *sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, encoding="utf-8")
    assert "MODULES" in done.stdout, done.stderr
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import mambar",
        "import mambar; dir(mambar)",
        "from mambar.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from mambar.cli.main import main\ntry: main(['--version'])\nexcept SystemExit: pass",
        "from mambar.cli.main import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy(code):
    assert not modules_after(code) & set(HEAVY)


def test_models_need_torch_only():
    found = modules_after("import mambar.models") & set(HEAVY)
    assert "torch" in found
    assert found <= {"torch", "triton"}


def test_the_probe_sees_heavy_imports():
    assert "torch" in modules_after("import torch")
