"""Weights of one model into another of a different input size, head, or number of registers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mambar.errors import CheckpointMismatch
from mambar.models.config import VisionMambaConfig
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.position_embed import resize_positions

# What may start newly_initialized when its shape differs: the head with its reduce layer and norm, and the registers.
_MAY_START_FRESH = ("head.", "registers.")


@dataclass(frozen=True, kw_only=True)
class LoadInfo:
    """Which parameters were loaded over, which were resized, which keep the new model's own start values."""

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    newly_initialized: tuple[str, ...]


def load_pretrained_weights(model: VisionMamba, state: Mapping[str, Tensor], config: VisionMambaConfig) -> LoadInfo:
    """Fills `model` from the weights of a model built from `config`, resizing positions to its grid.

    As the released fine-tuning does (golden cases `finetune`): positions of patches are resized bicubically,
    positions of registers are kept; on a shape clash head, registers, reduce layer and second norm start newly_initialized.
    Any other clash raises `CheckpointMismatch`.
    """
    own = model.state_dict()
    loaded, resized, newly_initialized, merged = [], [], [], {}
    unknown = sorted(name for name in set(state) - set(own) if not name.startswith(_MAY_START_FRESH))
    if unknown:
        raise CheckpointMismatch(f"The weights hold {', '.join(unknown[:6])}, which the model does not have.")
    for name, value in own.items():
        given = state.get(name)
        if name == "pos_embed.weight" and given is not None and config.grid != model.config.grid:
            given = resize_positions(given, config.grid, model.config.grid)
            resized.append(name)
        elif given is not None and given.shape == value.shape:
            loaded.append(name)
        elif name.startswith(_MAY_START_FRESH):
            newly_initialized.append(name)
            continue
        if given is None or given.shape != value.shape:
            shape = "missing" if given is None else f"of shape {tuple(given.shape)}"
            raise CheckpointMismatch(f"{name} is {shape} in the weights; the model needs {tuple(value.shape)}.")
        merged[name] = given.to(value.dtype)
    with torch.no_grad():
        model.load_state_dict(merged, strict=False)
    return LoadInfo(loaded=tuple(loaded), resized=tuple(resized), newly_initialized=tuple(newly_initialized))
