"""A segmenter on disk: `config.json` beside `model.safetensors`, as `mambar.hub` writes a classifier."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import nn

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import CheckpointError, CheckpointMismatch, InputError
from mambar.hub.config_file import CONFIG, json_bytes, read_config, read_json, with_checksum
from mambar.hub.files import WEIGHTS, write_atomically
from mambar.hub.safetensors_file import read_safetensors
from mambar.hub.weight_checks import as_checkpoint_error, check_weights, first_non_finite
from mambar.models.complexity import parameter_count
from mambar.models.config import VisionMambaConfig
from mambar.models.vision_mamba import VisionMamba
from mambar.segmentation.inference import Inference
from mambar.segmentation.segmenter import Segmenter, SegmenterConfig
from mambar.version import __version__

# 1: version 0.1, without a checksum.
FORMAT_VERSION: Final = 2
KIND: Final = "segmenter"
# A decoder of the widest published kind has some 80 M parameters.
_LARGEST_DECODER: Final = 500_000_000


def save_segmenter(directory: Path, model: Segmenter, *, name: str | None, inference: Inference, force: bool) -> None:
    """Writes `config.json` and `model.safetensors`; what the model carries (classes, palette, …) goes with it.

    Refuses to overwrite either file unless `force`. Raises `DiskError`, and `CheckpointError` for NaN or Inf.
    """
    if not isinstance(model.backbone, VisionMamba):
        raise InputError(
            f"a segmenter on {type(model.backbone).__name__} is not saved here; keep its state_dict, or use a Mamba-R."
        )
    directory = Path(directory)
    taken = [file for file in (CONFIG, WEIGHTS) if os.path.lexists(directory / file)]
    if taken and not force:
        raise InputError(f"{directory} already holds {' and '.join(taken)}; choose another place or give --force.")
    directory.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    bad = first_non_finite(state)
    if bad is not None:
        raise CheckpointError(f"{bad} holds NaN or Inf; the weights are not saved.")
    weights = safetensors.torch.save(state, metadata={"format": "pt"})
    sha256 = write_atomically(directory / WEIGHTS, weights)
    ours = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "version": __version__,
        "name": name,
        "backbone": model.backbone.config.to_dict(),
        "segmenter": model.config.to_dict(),
        "classes": list(model.classes) if model.classes else None,
        "palette": [list(color) for color in model.palette] if model.palette else None,
        "preprocessing": (model.preprocessing or Preprocessing()).to_dict(),
        "inference": inference.to_dict(),
        "weights": {"file": WEIGHTS, "sha256": sha256, "bytes": len(weights)},
    }
    write_atomically(
        directory / CONFIG, json_bytes(with_checksum({"architecture": "mambar_segmenter", "mambar": ours}))
    )


def is_segmenter(directory: str | Path) -> bool:
    """Whether a directory holds a segmenter (and not a classifier, or nothing)."""
    path = Path(directory).expanduser() / CONFIG
    if not path.is_file():
        return False
    ours = read_json(path).get("mambar")
    return isinstance(ours, Mapping) and ours.get("kind") == KIND


def load_segmenter(source: str | Path, *, device: str | torch.device = "cpu") -> Segmenter:
    """A trained segmenter from its run directory, in evaluation mode, with classes, palette and preprocessing.

    Weights are verified against the sha256 in config.json. Raises `CheckpointError` for damage or another kind.
    """
    model, _ = load_with_inference(source, device=device)
    return model


def load_with_inference(source: str | Path, *, device: str | torch.device = "cpu") -> tuple[Segmenter, Inference]:
    """The segmenter of a run directory, and how it was evaluated in training."""
    directory = Path(source).expanduser()
    path = directory / CONFIG
    if not directory.is_dir():
        raise InputError(f"There is no segmenter at {source}; give the directory of a segmentation run.")
    ours = read_config(path, newest=FORMAT_VERSION)
    if ours.get("kind") != KIND:
        raise CheckpointError(f"{path} describes no segmenter; train one with a segmentation recipe.")
    recorded = ours.get("weights")
    sha256 = recorded.get("sha256") if isinstance(recorded, Mapping) else None
    if not isinstance(sha256, str):
        raise CheckpointError(f"{path} records no sha256 of the weights; copy the run anew.")
    state = read_safetensors(directory / WEIGHTS, sha256=sha256)
    check_weights(state, origin=directory / WEIGHTS)
    with as_checkpoint_error(path):
        config = VisionMambaConfig.from_dict(ours["backbone"])
        # A few bytes must not make a model of terabytes.
        held = sum(tensor.numel() for tensor in state.values())
        if parameter_count(config) > 2 * held + 100_000:
            raise CheckpointMismatch(f"{path} describes a larger model than the {held} numbers of {WEIGHTS}.")
        described = SegmenterConfig.from_dict(ours["segmenter"])
        if described.channels**2 * 9 * 4 > _LARGEST_DECODER:
            raise InputError(f"channels={described.channels} is no decoder of mambar.")
        model = Segmenter(VisionMamba(config), **vars(described))
        model.classes = _names(ours.get("classes"), described.num_classes)
        model.palette = _colours(ours.get("palette"), described.num_classes)
        model.preprocessing = Preprocessing.from_dict(ours["preprocessing"])
        inference = Inference.from_dict(ours["inference"])
    _fill(model, state, str(directory / WEIGHTS))
    return model.to(device).eval(), inference


def _fill(model: nn.Module, state: Mapping[str, torch.Tensor], origin: str) -> None:
    wanted = model.state_dict()
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    other = [name for name in wanted if name in state and wanted[name].shape != state[name].shape]
    if missing or unexpected or other:
        raise CheckpointMismatch(
            f"{origin} does not fit the segmenter: missing {missing[:4] or 'nothing'}, unexpected "
            f"{unexpected[:4] or 'nothing'}, of another shape {other[:4] or 'nothing'}."
        )
    model.load_state_dict(dict(state))


def _names(names: Any, count: int) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise InputError(f"classes must be {count} names.")
    return tuple(names)


def _colours(colors: Any, count: int) -> tuple[tuple[int, int, int], ...]:
    if not isinstance(colors, list) or len(colors) != count:
        raise InputError(f"palette must be {count} colors.")
    found = []
    for color in colors:
        red, green, blue = (int(band) for band in color)
        if not all(0 <= band <= 255 for band in (red, green, blue)):
            raise InputError(f"palette: {color} is no color; use three numbers from 0 to 255.")
        found.append((red, green, blue))
    return tuple(found)
