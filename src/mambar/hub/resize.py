"""Loads the weights of a model into one with another image size, head or number of registers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mambar.errors import CheckpointMismatch
from mambar.models.backbones import Config
from mambar.models.config import VisionMambaConfig
from mambar.models.timm_vit import TimmConfig, TimmViT
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.position_embed import resize_positions

# Parameters that keep their initial values when the shapes differ: the head and the registers.
_MAY_DIFFER = ("head.", "registers.")


@dataclass(frozen=True, kw_only=True)
class LoadInfo:
    """Names of the parameters of the new model, by how they were initialized.

    Attributes:
        loaded: copied from the weights.
        resized: interpolated to the new grid.
        newly_initialized: not loaded; they keep the model's initial values.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    newly_initialized: tuple[str, ...]


def load_pretrained_weights(model: Any, state: Mapping[str, Tensor], config: Config | None) -> LoadInfo:
    """Loads `state`, the weights of a model built from `config`, into `model`; returns what was loaded.

    `model` is any `Backbone`. As in the released fine-tuning code (golden cases `finetune`), patch positions are
    resized bicubically and register positions are kept; positions of a `TimmViT` are resized by timm. Parameters of
    the head and registers whose shapes differ keep their initial values. Where the weights have a `forward` mixer and
    the model a `bidirectional` one, both directions start from them. Any other difference raises `CheckpointMismatch`.
    """
    own, may_differ = model.state_dict(), _may_differ(model)
    # The weights of a causal mixer serve both directions of a bidirectional one.
    is_causal = not any(".backward_scan." in name for name in state)
    loaded, resized, newly_initialized, merged = [], [], [], {}
    unexpected = sorted(name for name in set(state) - set(own) if not name.startswith(may_differ))
    if unexpected:
        raise CheckpointMismatch(f"The weights contain {', '.join(unexpected[:6])}, which the model does not have.")
    for name, value in own.items():
        given = state.get(name.replace(".backward_scan.", ".forward_scan.") if is_causal else name)
        moved = None if given is None else _resized_positions(name, given, value, model, config)
        if moved is not None:
            given = moved
            resized.append(name)
        elif given is not None and given.shape == value.shape:
            loaded.append(name)
        elif name.startswith(may_differ):
            newly_initialized.append(name)
            continue
        if given is None or given.shape != value.shape:
            shape = "missing" if given is None else f"of shape {tuple(given.shape)}"
            raise CheckpointMismatch(f"{name} is {shape} in the weights; the model needs {tuple(value.shape)}.")
        merged[name] = given.to(value.dtype)
    with torch.no_grad():
        model.load_state_dict(merged, strict=False)
    return LoadInfo(loaded=tuple(loaded), resized=tuple(resized), newly_initialized=tuple(newly_initialized))


def _may_differ(model: Any) -> tuple[str, ...]:
    if not isinstance(model, TimmViT):
        return _MAY_DIFFER
    found = model.model.pretrained_cfg.get("classifier", "head")
    return tuple(f"model.{name}." for name in ([found] if isinstance(found, str) else found))


def _resized_positions(name: str, given: Tensor, value: Tensor, model: Any, config: Config | None) -> Tensor | None:
    """The positions `given` on the grid of the model, None for other parameters and for equal grids."""
    if isinstance(model, VisionMamba) and isinstance(config, VisionMambaConfig) and name == "pos_embed.weight":
        equal = config.grid == model.config.grid
        return None if equal else resize_positions(given, config.grid, model.config.grid)
    if not isinstance(model, TimmViT) or name != "model.pos_embed" or given.shape == value.shape:
        return None
    from timm.layers.pos_embed import resample_abs_pos_embed

    size = config.arguments.get("img_size") if isinstance(config, TimmConfig) else None
    old = [side // model.patch_size for side in size] if isinstance(size, tuple) else None
    num_prefix_tokens = 0 if getattr(model.model, "no_embed_class", False) else model.num_registers
    return resample_abs_pos_embed(given, list(model.model.patch_embed.grid_size), old, num_prefix_tokens)
