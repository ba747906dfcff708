"""Memory of the largest images, in a process of its own."""

import json
import subprocess
import sys

import pytest

# Peaks above the memory after the imports, in GiB: detection with 100 masks and their files, then a training step.
CHILD = """
import json, resource, sys
from pathlib import Path

import torch

import mambar
from mambar.detection import Detector, detect


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


torch.manual_seed(0)
body = {"patch_size": 16, "embed_dim": 16, "depth": 4, "num_registers": 2, "register_reduction": 2, "d_state": 4}
backbone = mambar.create_model("mambar_tiny_patch16_224", **body, num_classes=0)
model = Detector(backbone, num_classes=3, masks=True, channels=64, score_threshold=0.0)
image = torch.randint(256, (3, 800, 1333), dtype=torch.uint8)
start = peak()
found = detect(model.eval(), image, threshold=0.0)
assert len(found.boxes) == 100 and found.boxes[:, 2].max() > 1200
found.save(Path(sys.argv[1]), "x")
detecting = peak() - start
corners = torch.rand(20, 2) * torch.tensor([1000.0, 500.0])
target = {"boxes": torch.cat([corners, corners + 200], 1), "labels": torch.ones(20, dtype=torch.int64)}
target["masks"] = torch.ones(20, 800, 1333, dtype=torch.uint8)
losses = model.train()(torch.randn(1, 3, 800, 1344), [(800, 1333)], [target])
sum(losses.values()).backward()
print(json.dumps([detecting, peak() - start]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resource is a module of POSIX systems")
def test_memory_of_an_image_of_1333_pixels_is_bounded(tmp_path):
    arguments = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8", timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    detecting, training = json.loads(done.stdout)
    # 100 masks of the image's size are 0.1 GiB, and 0.4 GiB as float32.
    assert detecting < 0.4 and training < 1.0, (detecting, training)
