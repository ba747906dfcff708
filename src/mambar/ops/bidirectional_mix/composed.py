"""The bidirectional mix as a composition of the other ops."""

import torch.nn.functional as F
from torch import Tensor

from mambar.ops.bidirectional_mix.direction import ScanDirection
from mambar.ops.causal_conv1d import causal_conv1d
from mambar.ops.selective_scan import selective_scan


def bidirectional_mix(
    xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection, *, average: bool, backend: str = "auto"
) -> Tensor:
    """The sum of both directions over the same x and gate z, halved if `average`; `backend` is that of the parts."""
    x, z = xz.chunk(2, dim=-1)
    total = _one_direction(x, z, forward_params, reverse=False, backend=backend)
    total = total + _one_direction(x, z, backward_params, reverse=True, backend=backend)
    return total / 2 if average else total


def _one_direction(x: Tensor, z: Tensor, params: ScanDirection, *, reverse: bool, backend: str) -> Tensor:
    u = causal_conv1d(x, params.conv_weight, params.conv_bias, reverse=reverse, backend=backend)
    dt_rank, d_state = params.sizes
    low_rank, B, C = F.linear(u, params.x_proj).split([dt_rank, d_state, d_state], dim=-1)
    delta = F.linear(low_rank, params.dt_proj)
    options = {"delta_softplus": True, "reverse": reverse, "backend": backend}
    return selective_scan(u, delta, params.A, B, C, params.D, z, params.dt_bias, **options)
