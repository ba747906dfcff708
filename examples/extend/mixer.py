"""Add a mixer: a depthwise 3x3 convolution over the patch grid in place of the selective scan."""

from torch import nn

from mambar.models import VisionMamba, VisionMambaConfig
from mambar.nn import MIXERS
from mambar.nn.fused_forward import join_sequence, split_sequence


class ConvMixer(nn.Module):
    """Mixes the patches with a convolution; every register receives the mean of the patches."""

    def __init__(self, embed_dim, *, expand, proj_bias, **unused):
        super().__init__()
        self.in_proj = nn.Linear(embed_dim, expand * embed_dim, bias=proj_bias)
        self.conv = nn.Conv2d(expand * embed_dim, expand * embed_dim, 3, padding=1, groups=expand * embed_dim)
        self.out_proj = nn.Linear(expand * embed_dim, embed_dim, bias=proj_bias)

    def init_weights(self, *, depth):
        nn.init.trunc_normal_(self.out_proj.weight, std=0.02 / depth**0.5)

    def forward(self, tokens, grid, positions):
        patches, registers = split_sequence(self.in_proj(tokens), positions)
        maps = patches.transpose(1, 2).unflatten(2, grid)  # (B, E, rows, cols)
        patches = nn.functional.silu(self.conv(maps)).flatten(2).transpose(1, 2)
        return self.out_proj(join_sequence(patches, registers + patches.mean(1, keepdim=True), positions))


MIXERS["conv"] = ConvMixer


def build() -> VisionMamba:
    """A small model with this mixer."""
    return VisionMamba(VisionMambaConfig(mixer="conv", img_size=32, patch_size=8, embed_dim=32, depth=2))
