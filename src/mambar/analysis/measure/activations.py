"""Activations of a token model: evaluation mode, and all requested tokens from one forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from mambar.data.loading.to_device import to_device
from mambar.models.protocol import Images, TokenModel, TokenTensor, layer_indices
from mambar.models.timm_vit import TimmViT
from mambar.models.vision_mamba import VisionMamba
from mambar.nn import Tokens
from mambar.nn.eval_mode import eval_mode


@contextmanager
def eval_without_gradients(model: TokenModel) -> Iterator[None]:
    """The model in evaluation mode and without gradients; its previous mode is restored afterwards."""
    module: object = model
    with torch.no_grad(), eval_mode(module) if isinstance(module, nn.Module) else nullcontext():
        yield


def model_device(model: TokenModel) -> torch.device:
    """The device of the model's first parameter; the CPU for a model without parameters."""
    module: object = model
    if isinstance(module, nn.Module):
        for parameter in module.parameters():
            return parameter.device
    return torch.device("cpu")


def capture_activations(
    model: TokenModel, images: Images, layers: Mapping[TokenTensor, Sequence[int] | None]
) -> dict[TokenTensor, list[Tokens]]:
    """The tokens of the given layers of each tensor, on the model's device.

    Residual and normed tokens of a `VisionMamba` or a timm ViT come from one forward pass. A second pass runs if mixer
    outputs are requested too, or if the final norm of another `TokenModel` is not known.
    """
    indices: dict[TokenTensor, list[int]] = {tensor: layer_indices(model, chosen) for tensor, chosen in layers.items()}
    norm = _final_norm(model)
    found: dict[TokenTensor, list[Tokens]] = {}
    with eval_without_gradients(model):
        moved = to_device(images, model_device(model))
        if norm is not None and {"residual", "normed"} <= indices.keys():
            needed = sorted({*indices["residual"], *indices["normed"]})
            residual = dict(zip(needed, model.tokens(moved, needed), strict=True))
            found["residual"] = [residual[layer] for layer in indices["residual"]]
            # The norm acts on each token alone, so it may follow the split into patches and registers.
            found["normed"] = [_normed(norm, residual[layer]) for layer in indices["normed"]]
        for tensor, chosen in indices.items():
            if tensor not in found:
                found[tensor] = model.tokens(moved, chosen, tensor=tensor)
    return found


def _final_norm(model: TokenModel) -> nn.Module | None:
    if isinstance(model, VisionMamba):
        return model.norm
    return model.model.norm if isinstance(model, TimmViT) else None


def _normed(norm: nn.Module, tokens: Tokens) -> Tokens:
    registers = norm(tokens.registers) if tokens.registers.shape[1] else tokens.registers
    return Tokens(patches=norm(tokens.patches), registers=registers, grid=tokens.grid)
