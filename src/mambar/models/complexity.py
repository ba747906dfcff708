"""The costs of a model: parameters, multiply-adds, scan operations, memory.

Counted on a model of one block on the `meta` device, which allocates no memory. All blocks have the same cost.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mambar.models.config import VisionMambaConfig
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.mixer import DirectionalScan


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """Costs of one image at the configuration's image size.

    Attributes:
        parameters: number of parameters.
        length: number of tokens in the sequence.
        linear_macs: multiply-adds of matrix products and convolutions.
        scan_flops: operations of all scans, about 9 per token, channel and state.
        scan_states: tokens x channels x states, summed over all scans; scan speed is given in this unit.
        activation_bytes: memory that a bfloat16 training step of the bidirectional mixer keeps when convolution and
            step sizes are recomputed: float32 stream, normed input, both halves of the projection, mixed channels.
    """

    parameters: int
    length: int
    linear_macs: int
    scan_flops: int
    scan_states: int
    activation_bytes: int


def parameter_count(config: VisionMambaConfig) -> int:
    """The number of parameters of a model, for any mixer and head."""
    model = _one_block(config)
    block, total = (sum(each.numel() for each in module.parameters()) for module in (model.blocks, model))
    return total + (config.depth - 1) * block


def complexity(config: VisionMambaConfig) -> Complexity:
    """The costs of one image; they grow linearly with the batch size."""
    from torch.utils.flop_counter import FlopCounterMode

    model = _one_block(config).eval()
    scan_macs = states = 0

    def count_scan(scan: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        # Convolution and scan are custom kernels, which the counter of torch operations does not include.
        nonlocal scan_macs, states
        assert isinstance(scan, DirectionalScan)
        scan_macs += inputs[0].numel() * scan.conv_weight.shape[1]
        states += inputs[0].numel() * scan.d_state

    for module in model.modules():
        if isinstance(module, DirectionalScan):
            module.register_forward_hook(count_scan)
    with torch.no_grad(), torch.device("meta"):
        images = torch.empty(1, config.in_chans, *config.size)
        tokens, grid = model.embed(images)
        with FlopCounterMode(display=False) as one_block:
            model.run_block(model.blocks[0], tokens, grid)
        block_states, block_macs = states, scan_macs + one_block.get_total_flops() // 2
        with FlopCounterMode(display=False) as whole:
            model(images)
    outside = whole.get_total_flops() // 2 - one_block.get_total_flops() // 2
    length = tokens.shape[1]
    return Complexity(
        parameters=parameter_count(config),
        length=length,
        linear_macs=outside + config.depth * block_macs,
        scan_flops=9 * config.depth * block_states,
        scan_states=config.depth * block_states,
        activation_bytes=config.depth * length * 6 * (config.embed_dim + config.d_inner),
    )


def _one_block(config: VisionMambaConfig) -> VisionMamba:
    with torch.device("meta"):
        return VisionMamba(config.replace(depth=1))
