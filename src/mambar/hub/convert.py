"""Conversion between released Mamba-R and Vim checkpoints and state dicts of `VisionMamba`.

The parameter names are those in the checkpoints of github.com/wangf3014/Mamba-Reg and github.com/hustvl/Vim; no code
of these repositories is used.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mambar.errors import CheckpointMismatch, InputError
from mambar.models.config import VisionMambaConfig
from mambar.models.vision_mamba import VisionMamba

Source = Literal["mamba-reg", "vim"]
StateDict = dict[str, Tensor]

# Our name → released name; `_names` adds blocks and directions.
_MODEL_NAMES = {
    "registers.embedding": "cls_token",
    "registers.position": "pos_embed_cls",
    "pos_embed.weight": "pos_embed",
    "patch_embed.proj.weight": "patch_embed.proj.weight",
    "patch_embed.proj.bias": "patch_embed.proj.bias",
    "norm.weight": "norm_f.weight",
    "head.read_out.reduce.weight": "neck.weight",
    "head.read_out.norm.weight": "norm_neck.weight",
    "head.classifier.weight": "head.weight",
    "head.classifier.bias": "head.bias",
}
_PROJECTION_NAMES = ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias")
_DIRECTION_NAMES = {
    "conv_weight": ("conv1d.weight", "conv1d_b.weight"),
    "conv_bias": ("conv1d.bias", "conv1d_b.bias"),
    "x_proj.weight": ("x_proj.weight", "x_proj_b.weight"),
    "dt_proj.weight": ("dt_proj.weight", "dt_proj_b.weight"),
    "dt_proj.bias": ("dt_proj.bias", "dt_proj_b.bias"),
    "A_log": ("A_log", "A_b_log"),
    "D": ("D", "D_b"),
}


def released_mixer_names() -> dict[str, str]:
    """Parameter names of one mixer: our name → released name."""
    names = {name: name for name in _PROJECTION_NAMES}
    for ours, (forward, backward) in _DIRECTION_NAMES.items():
        names[f"forward_scan.{ours}"] = forward
        names[f"backward_scan.{ours}"] = backward
    return names


def _names(config: VisionMambaConfig) -> dict[str, str]:
    """All parameter names of a configuration: our name → released name."""
    if config.mixer != "bidirectional":
        raise InputError(f"The released format has mixer='bidirectional' only; got mixer={config.mixer!r}.")
    with torch.device("meta"):
        ours = VisionMamba(config).state_dict()
    inside = released_mixer_names()
    names = {}
    for name in ours:
        block = re.match(r"blocks\.(\d+)\.(.+)", name)
        if not block:
            names[name] = _MODEL_NAMES[name]
        elif block[2].startswith("mixer."):
            names[name] = f"layers.{block[1]}.mixer.{inside[block[2][6:]]}"
        else:
            names[name] = f"layers.{block[1]}.{block[2]}"
    return names


def extract_state_dict(state: Mapping[str, object]) -> StateDict:
    """The tensors of a checkpoint, without an outer "model" or "state_dict" key and without DDP's "module." prefix."""
    for key in ("model", "state_dict"):
        inner = state.get(key)
        if isinstance(inner, Mapping):
            state = inner
            break
    others = sorted(str(key) for key, value in state.items() if not isinstance(value, Tensor))
    if others:
        raise CheckpointMismatch(f"The checkpoint has entries that are no tensors: {_few(others)}.")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointMismatch("The checkpoint holds no tensors; give the file of a released model.")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def detect_source(state: Mapping[str, Tensor]) -> Source:
    """The code that wrote a checkpoint; Vim's have no separate position embedding for registers."""
    return "mamba-reg" if "pos_embed_cls" in state else "vim"


def infer_config(state: Mapping[str, Tensor], *, img_size: int | tuple[int, int] | None = None) -> VisionMambaConfig:
    """The configuration of a released checkpoint, inferred from the shapes of its tensors.

    `img_size` must fit the position table; without it, the table must be square. Without `head.weight`,
    num_classes is 0. `average_directions` cannot be inferred and is True.
    """
    source = detect_source(state)
    mixer = "layers.0.mixer."
    _require(
        state,
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        *(mixer + name for name in ("A_log", "conv1d.weight", "dt_proj.weight", "in_proj.weight")),
    )
    dim = state["pos_embed"].shape[-1]
    patches = state["pos_embed"].shape[1] - (source == "vim")
    patch_size = state["patch_embed.proj.weight"].shape[-1]
    num_registers = 1 if source == "vim" else state["cls_token"].shape[1]
    neck, head = state.get("neck.weight"), state.get("head.weight")
    blocks = {int(found[1]) for key in state if (found := re.match(r"layers\.(\d{1,4})\.", key))}
    if len(blocks) != max(blocks) + 1:
        raise CheckpointMismatch(f"The checkpoint has layer {max(blocks)} but only {len(blocks)} layers.")
    return VisionMambaConfig(
        img_size=_img_size(patches, patch_size, img_size),
        patch_size=patch_size,
        in_chans=state["patch_embed.proj.weight"].shape[1],
        embed_dim=dim,
        depth=max(blocks) + 1,
        num_registers=num_registers,
        register_reduction=1 if neck is None else dim // max(neck.shape[0], 1),
        num_classes=0 if head is None else head.shape[0],
        d_state=state[mixer + "A_log"].shape[1],
        d_conv=state[mixer + "conv1d.weight"].shape[-1],
        expand=state[mixer + "in_proj.weight"].shape[0] // (2 * dim),
        dt_rank=state[mixer + "dt_proj.weight"].shape[1],
        placement="middle" if source == "vim" else "evenly",
        head="token" if source == "vim" else "registers",
        proj_bias=mixer + "in_proj.bias" in state,
        conv_bias=mixer + "conv1d.bias" in state,
        average_directions=True,
    )


def convert_checkpoint(state: Mapping[str, Tensor], *, source: Source, config: VisionMambaConfig) -> StateDict:
    """A released state dict with our names and shapes; values are not changed.

    Raises `CheckpointMismatch`, which lists the keys, for missing or unexpected keys and for other shapes than
    those of the configuration.
    """
    state = dict(state)
    if source == "vim":
        state = _registers_from_vim(state)
    elif source != "mamba-reg":
        raise InputError(f"source={source!r} is unknown; choose 'mamba-reg' or 'vim'.")
    names = _names(config)
    missing = sorted(set(names.values()) - set(state))
    unexpected = sorted(set(state) - set(names.values()))
    if missing or unexpected:
        raise CheckpointMismatch(
            f"The checkpoint does not fit the model: missing {_few(missing)}; unexpected {_few(unexpected)}."
        )
    with torch.device("meta"):
        wanted = VisionMamba(config).state_dict()
    converted: StateDict = {}
    for ours, theirs in names.items():
        tensor = state[theirs]
        if ours.endswith("conv_weight") and tensor.ndim == 3 and tensor.shape[1] == 1:
            tensor = tensor.squeeze(1)
        if tensor.shape != wanted[ours].shape:
            raise CheckpointMismatch(
                f"{theirs} has shape {tuple(state[theirs].shape)}, but {ours} of the model has "
                f"{tuple(wanted[ours].shape)}; check the configuration, or use load_pretrained_weights to resize."
            )
        converted[ours] = tensor
    return converted


def to_official(state: Mapping[str, Tensor], *, source: Source, config: VisionMambaConfig) -> StateDict:
    """A state dict of `VisionMamba` with released names and shapes; the exact inverse of `convert_checkpoint`."""
    released = {}
    for ours, theirs in _names(config).items():
        if ours not in state:
            raise CheckpointMismatch(f"{ours} is missing from the state dict.")
        released[theirs] = state[ours].unsqueeze(1) if ours.endswith("conv_weight") else state[ours]
    return _registers_to_vim(released) if source == "vim" else released


def _registers_from_vim(state: StateDict) -> StateDict:
    """Splits Vim's position table, which is in sequence order, into patches and class token."""
    _require(state, "pos_embed", "cls_token")
    table = state["pos_embed"]
    middle = (table.shape[1] - 1) // 2
    state["pos_embed_cls"] = table[:, middle : middle + 1].clone()
    state["pos_embed"] = torch.cat([table[:, :middle], table[:, middle + 1 :]], dim=1)
    return state


def _registers_to_vim(state: StateDict) -> StateDict:
    table, middle = state["pos_embed"], state["pos_embed"].shape[1] // 2
    parts = [table[:, :middle], state.pop("pos_embed_cls"), table[:, middle:]]
    state["pos_embed"] = torch.cat(parts, dim=1)
    return state


def _img_size(patches: int, patch_size: int, img_size: int | tuple[int, int] | None) -> int | tuple[int, int]:
    if img_size is None:
        side = round(patches**0.5)
        if side * side != patches:
            raise CheckpointMismatch(
                f"The position table has {patches} rows, which is no square grid; give img_size=(height, width)."
            )
        return side * patch_size
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if (height // patch_size) * (width // patch_size) != patches:
        raise CheckpointMismatch(
            f"img_size={img_size} has a grid of {height // patch_size}x{width // patch_size} patches, but the "
            f"position table has {patches} rows; load it at its own size, then resize (mambar.hub.resize)."
        )
    return img_size


def _require(state: Mapping[str, Tensor], *keys: str) -> None:
    missing = [key for key in keys if key not in state]
    if missing:
        raise CheckpointMismatch(
            f"This is no released Mamba-R or Vim checkpoint: missing {_few(missing)}; it has {_few(sorted(state))}."
        )


def _few(keys: list[str], count: int = 6) -> str:
    if not keys:
        return "nothing"
    more = f" and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(key if key.isprintable() and len(key) <= 80 else repr(key[:80]) for key in keys[:count]) + more
