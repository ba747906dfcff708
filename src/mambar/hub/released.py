"""Loads released Mamba-R and Vim checkpoints."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mambar.errors import CheckpointError
from mambar.hub.convert import convert_checkpoint, detect_source, extract_state_dict, infer_config
from mambar.hub.safetensors_file import read_safetensors
from mambar.hub.unpickle import read_pickled_checkpoint
from mambar.hub.weight_checks import as_checkpoint_error, check_weights
from mambar.models.vision_mamba import VisionMamba


def load_official(
    state_or_path: Mapping[str, object] | str | Path, *, img_size: int | tuple[int, int] | None = None
) -> VisionMamba:
    """A `VisionMamba` with the weights of a released checkpoint; its configuration is inferred from the tensors.

    state_or_path: a `.pth` or `.safetensors` file, or a state dict, with or without the outer key "model".
    img_size: pixels, or (height, width), of the position table; by default the table must be square.
    `average_directions` cannot be inferred and is set to True, as in Mamba-R and in Vim's models named div2.
    Raises `CheckpointMismatch` for missing or unexpected keys, `CheckpointError` for an unsafe or damaged file.
    """
    if isinstance(state_or_path, Mapping):
        origin, state = "the state dict", extract_state_dict(state_or_path)
    else:
        origin, state = state_or_path, read_official(Path(state_or_path))
    with as_checkpoint_error(origin):
        config = infer_config(state, img_size=img_size)
        # Before the model is allocated: this checks that the tensors have its size.
        converted = convert_checkpoint(state, source=detect_source(state), config=config)
        model = VisionMamba(config)
    model.to(state["pos_embed"].dtype).load_state_dict(converted)
    return model


def read_official(path: Path) -> dict[str, Tensor]:
    """The tensors of a released `.pth` or `.safetensors` file, checked by `check_weights`."""
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    state = extract_state_dict(
        read_safetensors(path) if path.suffix == ".safetensors" else read_pickled_checkpoint(path)
    )
    check_weights(state, origin=path)
    return state
