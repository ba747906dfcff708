"""What a model costs: parameters, multiply-adds, scan work, memory. Counted from its sizes, not measured."""

from dataclasses import dataclass

from mambar.models.config import VisionMambaConfig
from mambar.nn.heads import WidenedHead


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """Costs of one image at the configuration's image size.

    parameters: count. length: tokens in the sequence. linear_macs: multiply-adds of projections, convolutions
    and head. scan_flops: operations of the scans of both directions (about 9 a token, channel and state).
    scan_states: tokens x channels x states x directions x layers, the unit in which scan speed is given.
    activation_bytes: what a training step in bfloat16 keeps a block when convolution and step sizes are
    recomputed: float32 stream, normed input, both halves of the projection, and the mixed channels.
    """

    parameters: int
    length: int
    linear_macs: int
    scan_flops: int
    scan_states: int
    activation_bytes: int


def parameter_count(config: VisionMambaConfig) -> int:
    """The number of parameters, from the sizes alone (equal to the sum over a built model: tested)."""
    dim, inner, rank, state = config.embed_dim, config.d_inner, config.effective_dt_rank, config.d_state
    rows, cols = config.grid
    direction = inner * (config.d_conv + config.conv_bias) + inner * (rank + 2 * state)
    direction += rank * inner + inner + inner * state + inner
    mixer = 3 * dim * inner + 2 * direction + (2 * inner + dim) * config.proj_bias
    features, read_out, _ = _head(config)
    classifier = features * config.num_classes + config.num_classes
    tokens = dim * (rows * cols + 2 * config.num_registers)
    patch = config.in_chans * config.patch_size**2 * dim + dim
    return patch + tokens + config.depth * (mixer + dim) + dim + read_out + classifier


def _head(config: VisionMambaConfig) -> tuple[int, int, int]:
    """The features, parameters and multiply-adds of the read-out."""
    dim = config.embed_dim
    if config.head == "registers":
        reduced = dim // config.register_reduction
        features = config.num_registers * reduced
        if config.register_reduction == 1:
            return features, 0, 0
        return features, dim * reduced + features, config.num_registers * dim * reduced
    if config.head == "widened":
        features = WidenedHead.FACTOR * dim
        return features, dim * features + features, dim * features
    return dim, 0, 0


def complexity(config: VisionMambaConfig) -> Complexity:
    """Counts the costs of one image; batch and precision scale them."""
    rows, cols = config.grid
    patches, dim, inner = rows * cols, config.embed_dim, config.d_inner
    length = patches + config.num_registers
    per_token = 3 * dim * inner
    per_token += 2 * inner * (config.effective_dt_rank + 2 * config.d_state + config.effective_dt_rank + config.d_conv)
    features, _, read_out = _head(config)
    macs = patches * config.in_chans * config.patch_size**2 * dim + config.depth * length * per_token
    macs += read_out + features * config.num_classes
    states = 2 * config.depth * length * inner * config.d_state
    return Complexity(
        parameters=parameter_count(config),
        length=length,
        linear_macs=macs,
        scan_flops=9 * states,
        scan_states=states,
        activation_bytes=config.depth * length * (4 * dim + 2 * dim + 4 * inner + 2 * inner),
    )
