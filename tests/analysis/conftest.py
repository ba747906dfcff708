from collections.abc import Sequence

import pytest
import torch
from torch import nn

from hostile_names import HOSTILE
from mambar.nn.registers import Tokens


def pytest_generate_tests(metafunc):
    if "hostile" in metafunc.fixturenames:
        names = [f"hostile{index}" for index in range(len(HOSTILE))]
        metafunc.parametrize("hostile", HOSTILE, ids=names)


class FakeModel(nn.Module):
    """A TokenModel whose tokens are known: patch p of layer k is (k + 1) mean(p) (3, 4, 0, 0),
    so its norm is 5 (k + 1) |mean(p)|; register j is (k + 1) (j + 1) (0, 0, 1, 0)."""

    def __init__(self, num_layers=3, patch_size=2, num_registers=2, num_classes=3):
        super().__init__()
        self.num_layers, self.patch_size, self.num_registers, self.embed_dim = (
            num_layers,
            patch_size,
            num_registers,
            4,
        )
        self.head = nn.Linear(4, num_classes)
        nn.init.constant_(self.head.weight, 0.1)
        nn.init.zeros_(self.head.bias)

    def tokens(self, images, layers: Sequence[int] | None = None, *, tensor="residual"):
        size = self.patch_size
        means = nn.functional.avg_pool2d(images.mean(1, keepdim=True), size)[:, 0]  # (B, rows, cols)
        batch, rows, cols = means.shape
        direction = torch.tensor([3.0, 4.0, 0.0, 0.0], dtype=images.dtype)
        scale = {"residual": 1.0, "mixer": 0.5, "normed": 0.1}[tensor]
        found = []
        for layer in range(self.num_layers) if layers is None else layers:
            factor = scale * (layer % self.num_layers + 1)
            patches = factor * means.flatten(1)[..., None] * direction
            index = torch.arange(1, self.num_registers + 1, dtype=images.dtype)
            registers = factor * index[None, :, None] * torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(batch, 1, 4)
            found.append(Tokens(patches=patches, registers=registers, grid=(rows, cols)))
        return found

    def forward(self, images):
        return self.head(self.tokens(images, [-1])[0].patches.mean(1))


@pytest.fixture(scope="session")
def fake_model_class():
    return FakeModel


@pytest.fixture
def fake_model():
    return FakeModel()
