"""A token model that computes in microseconds, and a tiny Mamba-R."""

import pytest
import torch
from torch import nn

from mambar.models import VisionMamba, VisionMambaConfig
from mambar.nn.registers import Tokens


class PatchModel(nn.Module):
    """Patches through a few linear blocks with residuals; two registers that see the mean patch."""

    def __init__(self, dim=16, patch_size=8, depth=4, num_registers=2):
        super().__init__()
        self.embed_dim, self.patch_size, self.num_layers = dim, patch_size, depth
        self.num_registers = num_registers
        self.patch_embed = nn.Conv2d(3, dim, patch_size, patch_size)
        self.blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.unread = nn.Linear(dim, 3)

    def tokens(self, images, layers=None, *, tensor="residual"):
        x = self.patch_embed(images)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        every = []
        for block in self.blocks:
            x = x + torch.tanh(block(x))
            registers = x.mean(1, keepdim=True).expand(-1, self.num_registers, -1)
            every.append(Tokens(patches=x, registers=registers, grid=grid))
        return every if layers is None else [every[layer] for layer in layers]

    def forward(self, images):
        return self.unread(self.tokens(images)[-1].patches.mean(1))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return PatchModel()


@pytest.fixture
def make_backbone():
    return PatchModel


@pytest.fixture
def tiny_mamba():
    torch.manual_seed(0)
    return VisionMamba(
        VisionMambaConfig(
            img_size=32,
            patch_size=8,
            embed_dim=16,
            depth=4,
            num_registers=3,
            register_reduction=2,
            num_classes=5,
            d_state=4,
            dt_rank=2,
        )
    )
