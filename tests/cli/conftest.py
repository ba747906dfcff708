"""What the tests of verbs share: the command in this process, a small run, a picture."""

import numpy as np
import pytest
import torch
from PIL import Image

import mambar
from mambar.cli.main import main
from mambar.data.transforms.classification import Preprocessing
from mambar.models import VisionMamba, VisionMambaConfig

SMALL = VisionMambaConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_registers=2, num_classes=3)


@pytest.fixture
def mambar_command(capsys):
    """Runs the command line in this process; gives exit code, stdout, stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(0)
    mambar.save_model(
        tmp_path / "run",
        VisionMamba(SMALL),
        classes=["ant", "bee", "cat"],
        preprocessing=Preprocessing(img_size=16),
    )
    return tmp_path / "run"


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"
