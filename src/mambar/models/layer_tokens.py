"""Tokens of some layers of a backbone, for decoders and detection heads."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.models.protocol import TokenModel
from mambar.nn.registers import Tokens


def spaced_layers(depth: int, count: int) -> tuple[int, ...]:
    """`count` evenly spaced layers: 5, 11, 17 and 23 of 24. If there are fewer layers, some occur twice."""
    return tuple(max(round(depth * (index + 1) / count) - 1, 0) for index in range(count))


def layer_tokens(
    backbone: TokenModel, images: Float[Tensor, "batch channels height width"], layers: Sequence[int]
) -> list[Tokens]:
    """The tokens of `layers`, of images that are zero-padded to whole patches; no graph of a frozen backbone."""
    assert isinstance(backbone, nn.Module)
    images = pad_to_patches(images, backbone.patch_size)
    frozen = not any(parameter.requires_grad for parameter in backbone.parameters())
    # A layer may occur twice in `layers`; it is computed once.
    unique = sorted(set(layers))
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        tokens_of = dict(zip(unique, backbone.tokens(images, unique), strict=True))
    return [tokens_of[layer] for layer in layers]


def pad_to_patches(images: Tensor, patch_size: int) -> Tensor:
    """The images with zeros on the right and bottom to whole patches."""
    bottom, right = (-images.shape[-2] % patch_size, -images.shape[-1] % patch_size)
    return nn.functional.pad(images, (0, right, 0, bottom)) if bottom or right else images


def probe_tokens(backbone: TokenModel, layers: Sequence[int]) -> Tokens:
    """The tokens of the last of `layers` for an image of 2 × 2 patches of zeros."""
    assert isinstance(backbone, nn.Module)
    parameter = next(backbone.parameters())
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    side = 2 * backbone.patch_size
    return backbone.tokens(
        torch.zeros(1, channels, side, side, device=parameter.device, dtype=parameter.dtype), layers
    )[-1]


def freeze_unused(backbone: TokenModel, layers: Sequence[int]) -> None:
    """Freezes the parameters that none of `layers` depends on: final norm, classifier, later blocks."""
    if not isinstance(backbone, nn.Module):
        raise InputError(f"backbone={type(backbone).__name__} is not an nn.Module with tokens(images, layers).")
    trainable = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not trainable:
        return
    with torch.enable_grad():
        patches = probe_tokens(backbone, [max(layers)]).patches
        gradients = torch.autograd.grad(patches.sum(), trainable, allow_unused=True)
    for parameter, gradient in zip(trainable, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
