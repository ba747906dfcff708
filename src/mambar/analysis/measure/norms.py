"""L2 norms of image tokens and registers, layer by layer."""

import torch
from jaxtyping import Float
from torch import Tensor

from mambar.analysis.measure.activations import capture_activations
from mambar.models.protocol import Images, Layers, TokenModel, TokenTensor
from mambar.nn import Tokens


def token_norms(
    model: TokenModel, images: Images, layers: Layers = None, *, tensor: TokenTensor = "residual"
) -> Float[Tensor, "layers batch rows cols"]:
    """The L2 norm of each image token after the given layers, as maps without the registers; at least float32.

    `residual` is the residual stream after a block, `mixer` the output that the block adds to it, `normed` the residual
    stream after the final norm. The paper does not state which tensor its figures show (arXiv 2405.14858). Tokens after
    the final norm have nearly equal norms, sqrt(D) times the gain, so its figures show one of the first two.
    """
    return torch.stack([norm_map(tokens) for tokens in capture_activations(model, images, {tensor: layers})[tensor]])


def register_norms(
    model: TokenModel, images: Images, layers: Layers = None, *, tensor: TokenTensor = "residual"
) -> Float[Tensor, "layers batch registers"]:
    """The L2 norm of each register (or class token) after the given layers."""
    found = capture_activations(model, images, {tensor: layers})[tensor]
    return torch.stack([l2_norms(tokens.registers) for tokens in found])


def norm_map(tokens: Tokens) -> Float[Tensor, "batch rows cols"]:
    """The L2 norm of each image token, as a map."""
    return l2_norms(tokens.patches).unflatten(1, tokens.grid)


def l2_norms(vectors: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape"]:
    """L2 norms over the last axis, accumulated in at least float32."""
    wide = torch.promote_types(vectors.dtype, torch.float32)
    return torch.linalg.vector_norm(vectors.to(wide), dim=-1)
