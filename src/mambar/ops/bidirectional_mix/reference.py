"""The two-way mix as a composition of the other ops, which choose their own backends."""

import torch.nn.functional as F
from torch import Tensor

from mambar.ops.bidirectional_mix.direction import ScanDirection
from mambar.ops.causal_conv1d import causal_conv1d
from mambar.ops.selective_scan import selective_scan


def bidirectional_mix(
    xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection, *, average: bool
) -> Tensor:
    """Both directions over the same x and gate z, summed, and halved if `average`."""
    x, z = xz.chunk(2, dim=-1)
    total = _one_way(x, z, forward_params, reverse=False) + _one_way(x, z, backward_params, reverse=True)
    return total / 2 if average else total


def _one_way(x: Tensor, z: Tensor, way: ScanDirection, *, reverse: bool) -> Tensor:
    u = causal_conv1d(x, way.conv_weight, way.conv_bias, reverse=reverse)
    rank, state = way.sizes
    low, B, C = F.linear(u, way.x_proj).split([rank, state, state], dim=-1)
    delta = F.linear(low, way.dt_proj)
    return selective_scan(u, delta, way.A, B, C, way.D, z, way.dt_bias, delta_softplus=True, reverse=reverse)
