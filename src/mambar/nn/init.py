"""Start values, as the released code has them (one departure, named)."""

import math

import torch
from torch import nn

from mambar.nn.mixer import DirectionalScan, MambaMixer
from mambar.nn.patch_embed import PatchEmbed
from mambar.nn.position_embed import PositionEmbed
from mambar.nn.registers import RegisterTokens

# The standard deviation that a normal distribution keeps after it is cut at two standard deviations.
_CUT_NORMAL = 0.87962566103423978


def init_tokens(module: RegisterTokens | PositionEmbed) -> None:
    """Truncated normal of standard deviation 0.02 for learned vectors and positions."""
    for parameter in module.parameters():
        nn.init.trunc_normal_(parameter, std=0.02)


def init_patch_embed(module: PatchEmbed) -> None:
    """LeCun normal as timm writes it: deviation fan_in^-½ / 0.88 (the correction for a cut that is not made)."""
    fan_in = module.proj.weight[0].numel()
    nn.init.trunc_normal_(module.proj.weight, std=fan_in**-0.5 / _CUT_NORMAL)
    assert module.proj.bias is not None
    nn.init.zeros_(module.proj.bias)


def init_step_size(scan: DirectionalScan, *, least: float = 1e-3, most: float = 0.1, floor: float = 1e-4) -> None:
    """dt weight uniform ±rank^-½; dt bias such that softplus gives a log-uniform step in [least, most]."""
    rank = scan.dt_proj.in_features
    nn.init.uniform_(scan.dt_proj.weight, -(rank**-0.5), rank**-0.5)
    with torch.no_grad():
        step = torch.exp(
            torch.rand_like(scan.dt_proj.bias) * (math.log(most) - math.log(least)) + math.log(least)
        ).clamp_(min=floor)
        scan.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))


def init_mixer(mixer: MambaMixer, *, depth: int, official_backward_bias: bool = False) -> None:
    """Step sizes of both directions alike; out_proj kaiming-uniform divided by sqrt(depth).

    In the released code a later hook sets the *backward* dt bias to 0 (inherited from Vim), so that direction
    starts with steps near 0.7 instead of 0.001-0.1. `official_backward_bias=True` does the same; the default
    treats both directions alike.
    """
    init_step_size(mixer.forward_scan)
    init_step_size(mixer.backward_scan)
    if official_backward_bias:
        nn.init.zeros_(mixer.backward_scan.dt_proj.bias)
    nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
    with torch.no_grad():
        mixer.out_proj.weight.div_(math.sqrt(depth))
    for projection in (mixer.in_proj, mixer.out_proj):
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
