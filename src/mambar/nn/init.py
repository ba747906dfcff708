"""Weight initialization, as in the released code."""

import math
from collections.abc import Iterable

import torch
from torch import nn

# The standard deviation of a standard normal distribution truncated at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978


def reset_parameters(module: nn.Module) -> None:
    """Calls `reset_parameters` of every submodule that has it, which restores the initial values of the constructors.

    PyTorch's convention, on which FSDP relies for modules built on the `meta` device. Submodules come before the module
    that holds them, as in the constructors, so that random numbers are drawn in the same order.
    """
    for child in module.children():
        reset_parameters(child)
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()


def init_tokens(parameters: Iterable[nn.Parameter]) -> None:
    """Truncated normal of standard deviation 0.02 for learned tokens and positions."""
    for parameter in parameters:
        nn.init.trunc_normal_(parameter, std=0.02)


def init_patch_projection(proj: nn.Conv2d) -> None:
    """LeCun normal as in timm: deviation fan_in^-½ / 0.88, a correction for truncation, which is negligible here."""
    nn.init.trunc_normal_(proj.weight, std=proj.weight[0].numel() ** -0.5 / _TRUNCATED_STD)
    if proj.bias is not None:
        nn.init.zeros_(proj.bias)


def init_linears(module: nn.Module) -> None:
    """Truncated normal of standard deviation 0.02 for the linear layers of a head, biases 0."""
    for each in module.modules():
        if isinstance(each, nn.Linear):
            nn.init.trunc_normal_(each.weight, std=0.02)
            if each.bias is not None:
                nn.init.zeros_(each.bias)


def init_step_size(dt_proj: nn.Linear, *, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> None:
    """Weight uniform ±dt_rank^-½; bias such that softplus gives a log-uniform step in [dt_min, dt_max]."""
    rank = dt_proj.in_features
    nn.init.uniform_(dt_proj.weight, -(rank**-0.5), rank**-0.5)
    with torch.no_grad():
        step = torch.exp(
            torch.rand_like(dt_proj.bias) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
        ).clamp_(min=dt_floor)
        dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))


def init_projections(in_proj: nn.Linear, out_proj: nn.Linear, *, depth: int) -> None:
    """out_proj Kaiming-uniform divided by sqrt(depth); biases 0; the weight of in_proj keeps PyTorch's default."""
    nn.init.kaiming_uniform_(out_proj.weight, a=math.sqrt(5))
    with torch.no_grad():
        out_proj.weight.div_(math.sqrt(depth))
    for projection in (in_proj, out_proj):
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
