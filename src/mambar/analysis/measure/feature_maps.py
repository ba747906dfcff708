"""Feature maps as in the paper: similarity of every image token to a global vector of the image."""

from collections.abc import Callable
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.analysis.measure.activations import capture_activations, eval_without_gradients
from mambar.deprecated import ANALYSIS_VALUES, accept_old_names
from mambar.errors import InputError
from mambar.models.protocol import Images, Layers, TokenModel, TokenTensor
from mambar.models.vision_mamba import VisionMamba
from mambar.nn import RegisterHead, Tokens

Metric = Literal["l2", "cosine", "dot"]
# The metric of reports and of the web page: bright patches are similar to the global vector.
DEFAULT_METRIC: Final[Metric] = "cosine"


# Metric between image tokens (batch, patches, dim) and a vector (batch, 1, dim).
_METRICS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "l2": lambda tokens, vector: torch.linalg.vector_norm(tokens - vector, dim=-1),
    "cosine": lambda tokens, vector: nn.functional.cosine_similarity(tokens, vector, dim=-1),
    "dot": lambda tokens, vector: (tokens * vector).sum(-1),
}
# Names in color bars and captions; in the maps of each metric bright means similar.
METRIC_NAMES: Final = {"l2": "L2 distance", "cosine": "cosine similarity", "dot": "dot product"}
# The vector that the tokens are compared with, named as the heads; "register:3" is register 3, counted from 0.
GLOBAL_VECTORS: Final = {
    "register_mean": "mean of the registers",
    "token": "first register (class token)",
    "avg": "mean of the image tokens",
    "head": "mean of the registers, all tokens after the register head's reduce layer",
    "register:k": "register k",
}


def compare(
    local_tokens: Float[Tensor, "batch patches dim"], vector: Float[Tensor, "batch dim"], metric: Metric = "l2"
) -> Float[Tensor, "batch patches"]:
    """The metric between each image token and its image's vector, in at least float32.

    l2 is a distance (small: similar); cosine and dot are similarities (large: similar).
    """
    if metric not in _METRICS:
        raise InputError(f"metric={metric!r} is not known; choose one of {', '.join(_METRICS)}.")
    wide = torch.promote_types(local_tokens.dtype, torch.float32)
    return _METRICS[metric](local_tokens.to(wide), vector.to(wide)[:, None])


def global_vector(tokens: Tokens, name: str) -> Float[Tensor, "batch dim"]:
    """The global vector of each image: register_mean, token (first register), avg (of the patches) or register:k."""
    if name == "avg":
        return tokens.patches.mean(1)
    count = tokens.registers.shape[1]
    if not count:
        raise InputError(f"global_vector={name!r} needs a register; this model has none. Choose 'avg'.")
    if name == "register_mean":
        return tokens.registers.mean(1)
    if name == "token":
        return tokens.registers[:, 0]
    kind, _, number = name.partition(":")
    if kind == "register" and number.isdecimal() and int(number) < count:
        return tokens.registers[:, int(number)]
    choices = f"register_mean, token, avg, head, register:0 to register:{count - 1}"
    raise InputError(f"global_vector={name!r} is not known; choose one of {choices}.")


@accept_old_names({}, ANALYSIS_VALUES)
def feature_maps(
    model: TokenModel,
    images: Images,
    layers: Layers = None,
    *,
    vector: str = "register_mean",
    metric: Metric = DEFAULT_METRIC,
    tensor: TokenTensor = "normed",
) -> Float[Tensor, "layers batch rows cols"]:
    """The metric between each image token and the image's global `vector` (see `GLOBAL_VECTORS`), layer by layer.

    The paper shows maps of "global" against "local" outputs without stating layer, normalization or sign (arXiv
    2405.14858). Here the tokens pass through the final norm unless `tensor` is "residual" (before it) or "mixer".
    """
    found = capture_activations(model, images, {tensor: layers})[tensor]
    return torch.stack([feature_map(model, tokens, vector=vector, metric=metric) for tokens in found])


def feature_map(model: TokenModel, tokens: Tokens, *, vector: str, metric: Metric) -> Float[Tensor, "batch rows cols"]:
    """The feature map of tokens of `model`; see `feature_maps`."""
    if vector == "head":
        with eval_without_gradients(model):
            tokens, vector = reduced_tokens(model, tokens), "register_mean"
    return compare(tokens.patches, global_vector(tokens, vector), metric).unflatten(1, tokens.grid)


def supported_vector(model: TokenModel, tokens: Tokens, requested: str) -> str:
    """`requested`, or a global vector that the model has: avg without registers, token without a register head."""
    if not tokens.registers.shape[1]:
        return "avg"
    read_out = model.head.read_out if isinstance(model, VisionMamba) else None
    return "token" if requested == "head" and not isinstance(read_out, RegisterHead) else requested


def reduced_tokens(model: TokenModel, tokens: Tokens) -> Tokens:
    """All tokens after the shared linear layer of a Mamba-R's register head (unchanged for r = 1)."""
    read_out = model.head.read_out if isinstance(model, VisionMamba) else None
    if not isinstance(read_out, RegisterHead):
        raise InputError("global_vector='head' needs a model with a register head; choose 'register_mean' or 'token'.")
    return Tokens(
        patches=read_out.reduce(tokens.patches), registers=read_out.reduce(tokens.registers), grid=tokens.grid
    )
