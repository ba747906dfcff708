"""Add a head: the registers' maximum next to the patches' mean."""

import torch
from torch import nn

from mambar.models import VisionMamba, VisionMambaConfig
from mambar.nn import HEADS


class MaxMeanHead(nn.Module):
    """Maximum over registers and mean over patches, concatenated."""

    def __init__(self, embed_dim, num_registers, register_reduction):
        super().__init__()
        self.num_features = 2 * embed_dim

    def forward(self, tokens):
        return torch.cat([tokens.registers.amax(1), tokens.patches.mean(1)], dim=1)


HEADS["max_mean"] = MaxMeanHead


def build() -> VisionMamba:
    """A small model with this head."""
    return VisionMamba(VisionMambaConfig(head="max_mean", img_size=32, patch_size=8, embed_dim=32, depth=2))
