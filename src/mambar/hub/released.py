"""Loads a released Mamba-R or Vim checkpoint as a model."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mambar.errors import CheckpointError
from mambar.hub.convert import convert_checkpoint, infer_config, source_of, unwrap
from mambar.hub.files import read_safetensors
from mambar.hub.unpickle import read_pickled_checkpoint
from mambar.models.vision_mamba import VisionMamba


def load_official(
    state_or_path: Mapping[str, object] | str | Path, *, image_size: int | tuple[int, int] | None = None
) -> VisionMamba:
    """A `VisionMamba` from a released checkpoint; everything is inferred from its tensors.

    state_or_path: a `.pth` or `.safetensors` file, or a state dict, with or without the outer key "model".
    image_size (pixels, or (height, width)) decides the grid of the position table and must fit it; without it the
    table must be square. That the two directions are averaged cannot be seen in tensors: it is assumed (the
    released Mamba-R code and Vim's models named div2 do). Raises `CheckpointMismatch` unless every key is
    accounted for, `CheckpointError` for a file that is unsafe or damaged.
    """
    if isinstance(state_or_path, Mapping):
        state = unwrap(state_or_path)
    else:
        state = read_official(Path(state_or_path))
    config = infer_config(state, image_size=image_size)
    model = VisionMamba(config)
    dtype = state["pos_embed"].dtype
    model.to(dtype).load_state_dict(convert_checkpoint(state, source=source_of(state), config=config))
    return model


def read_official(path: Path) -> dict[str, Tensor]:
    """The tensors of a released checkpoint file, by its suffix."""
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        return unwrap(read_safetensors(path))
    return unwrap(read_pickled_checkpoint(path))
