"""Loads the weights of a model into one with another image size, head or number of registers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mambar.errors import CheckpointMismatch
from mambar.models.config import VisionMambaConfig
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.position_embed import resize_positions

# Parameters that keep their initial values when the shapes differ: the head and the registers.
_MAY_DIFFER = ("head.", "registers.")


@dataclass(frozen=True, kw_only=True)
class LoadInfo:
    """Names of the parameters of the new model, by what was done with them.

    Attributes:
        loaded: copied from the weights.
        resized: interpolated to the new grid.
        newly_initialized: not loaded; they keep the model's initial values.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    newly_initialized: tuple[str, ...]


def load_pretrained_weights(model: VisionMamba, state: Mapping[str, Tensor], config: VisionMambaConfig) -> LoadInfo:
    """Loads `state`, the weights of a model built from `config`, into `model`; returns what was loaded.

    As in the released fine-tuning code (golden cases `finetune`), patch positions are resized bicubically and
    register positions are kept. Parameters of the head and registers whose shapes differ keep their initial values.
    Any other difference raises `CheckpointMismatch`.
    """
    own = model.state_dict()
    loaded, resized, newly_initialized, merged = [], [], [], {}
    unexpected = sorted(name for name in set(state) - set(own) if not name.startswith(_MAY_DIFFER))
    if unexpected:
        raise CheckpointMismatch(f"The weights contain {', '.join(unexpected[:6])}, which the model does not have.")
    for name, value in own.items():
        given = state.get(name)
        if name == "pos_embed.weight" and given is not None and config.grid != model.config.grid:
            given = resize_positions(given, config.grid, model.config.grid)
            resized.append(name)
        elif given is not None and given.shape == value.shape:
            loaded.append(name)
        elif name.startswith(_MAY_DIFFER):
            newly_initialized.append(name)
            continue
        if given is None or given.shape != value.shape:
            shape = "missing" if given is None else f"of shape {tuple(given.shape)}"
            raise CheckpointMismatch(f"{name} is {shape} in the weights; the model needs {tuple(value.shape)}.")
        merged[name] = given.to(value.dtype)
    with torch.no_grad():
        model.load_state_dict(merged, strict=False)
    return LoadInfo(loaded=tuple(loaded), resized=tuple(resized), newly_initialized=tuple(newly_initialized))
