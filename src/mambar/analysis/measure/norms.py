"""How long the tokens are: the L2 norm of every image token and register, layer by layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.models.protocol import TokenModel, TokenTensor


@contextmanager
def eval_mode(model: TokenModel) -> Iterator[None]:
    """The model in evaluation mode and without gradients; afterwards its mode is as it was."""
    module: object = model
    training = isinstance(module, nn.Module) and module.training
    if isinstance(module, nn.Module):
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if isinstance(module, nn.Module):
            module.train(training)


def layer_indices(model: TokenModel, layers: Sequence[int] | None) -> list[int]:
    """The layers from 0; None: all; a negative number counts from the end. Raises `InputError` beyond."""
    count = model.num_layers
    if layers is None:
        return list(range(count))
    for layer in layers:
        if not -count <= layer < count:
            raise InputError(f"layer {layer} does not exist; the model has layers 0 to {count - 1}.")
    return [layer % count for layer in layers]


def token_norms(
    model: TokenModel,
    images: Float[Tensor, "batch channels height width"],
    layers: Sequence[int] | None = None,
    *,
    tensor: TokenTensor = "residual",
) -> Float[Tensor, "layers batch rows cols"]:
    """The L2 norm of each image token after the given layers, as maps; registers are left out.

    `residual` is the stream after a block, `mixer` what the block's mixer added to it, `normed` the stream
    through the final norm. The paper's figures do not say which of them they measure (arXiv 2405.14858); a
    normalised token of width D has norm sqrt(D) times the gain, so theirs are one of the first two.
    At least float32.
    """
    with eval_mode(model):
        maps = []
        for tokens in model.tokens(images, layer_indices(model, layers), tensor=tensor):
            rows, cols = tokens.grid
            maps.append(l2_norms(tokens.patches).reshape(-1, rows, cols))
    return torch.stack(maps)


def register_norms(
    model: TokenModel,
    images: Float[Tensor, "batch channels height width"],
    layers: Sequence[int] | None = None,
    *,
    tensor: TokenTensor = "residual",
) -> Float[Tensor, "layers batch registers"]:
    """The L2 norm of each register (or class token) after the given layers."""
    with eval_mode(model):
        found = model.tokens(images, layer_indices(model, layers), tensor=tensor)
        return torch.stack([l2_norms(tokens.registers) for tokens in found])


def l2_norms(vectors: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape"]:
    """L2 norms over the last axis, accumulated in at least float32."""
    wide = torch.promote_types(vectors.dtype, torch.float32)
    return torch.linalg.vector_norm(vectors.to(wide), dim=-1)
