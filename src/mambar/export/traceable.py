"""Prepares a model for tracing: a float32 copy in evaluation mode that shares the weights."""

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import InputError
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.block import MambaBlock


def traceable_model(
    model: VisionMamba, *, mixer: Callable[[nn.Module], nn.Module] | None = None, any_size: bool = False
) -> VisionMamba:
    """A float32 copy of the model on the CPU, which shares memory if possible; the model is not changed.

    mixer: replaces each block's mixer with the returned module. any_size: always resize the position table,
    because a traced program cannot test whether the grid is another.
    """
    tensors = (*model.parameters(), *model.buffers())
    # With parameters that require gradients, AOTInductor (torch 2.15) fixes the batch size to the example's.
    frozen = {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in model.parameters()}
    copied = copy.deepcopy(model, dict(frozen))
    if any(each.dtype != torch.float32 or each.device.type != "cpu" for each in tensors):
        copied = copy.deepcopy(copied).to(device="cpu", dtype=torch.float32)
    copied.set_grad_checkpointing(False)
    if mixer is not None:
        for block in copied.blocks:
            assert isinstance(block, MambaBlock)
            block.register_module("mixer", mixer(block.mixer))
    if any_size:
        copied.register_module("pos_embed", ResizedPositions(copied.pos_embed.weight, copied.pos_embed.grid))
    return copied.eval()


class ResizedPositions(nn.Module):
    """`PositionEmbed` that always resizes its table; resizing to its own grid changes nothing."""

    def __init__(self, weight: nn.Parameter, grid: tuple[int, int]) -> None:
        super().__init__()
        table = weight.detach().reshape(1, *grid, weight.shape[-1]).permute(0, 3, 1, 2).contiguous()
        self.register_buffer("table", table)

    def forward(
        self, patches: Float[Tensor, "batch patches dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch patches dim"]:
        table = self.get_buffer("table")
        resized = functional.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        return patches + resized.flatten(2).transpose(1, 2)


def input_size(model: VisionMamba, img_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) in pixels of the example input; by default the model's `img_size`."""
    height, width = model.config.replace(img_size=img_size).size if img_size is not None else model.config.size
    patch = model.patch_size
    if height % patch or width % patch:
        raise InputError(
            f"img_size={(height, width)} is not a multiple of the patch size of {patch} pixels; "
            f"use {(height // patch * patch, width // patch * patch)}."
        )
    return height, width


def description(model: VisionMamba) -> str:
    """Class names, preprocessing and configuration as JSON, stored in the exported file."""
    preprocessing = model.preprocessing or Preprocessing(img_size=model.config.img_size)
    content: dict[str, Any] = {
        "format_version": 2,
        "classes": list(model.classes) if model.classes else None,
        "preprocessing": preprocessing.to_dict(),
        "config": model.config.to_dict(),
    }
    return json.dumps(content)
