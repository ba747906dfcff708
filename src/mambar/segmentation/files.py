"""Saves and loads segmenter directories: `config.json` and `model.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import CheckpointError, InputError
from mambar.hub.config_file import CONFIG, read_config, read_json
from mambar.hub.files import (
    build_model,
    checkpoint_of_run,
    load_weights,
    model_directory,
    read_directory_weights,
    write_directory,
)
from mambar.hub.weight_checks import as_checkpoint_error
from mambar.segmentation.decoders import SegmenterConfig
from mambar.segmentation.inference import Inference
from mambar.segmentation.segmenter import Segmenter
from mambar.version import __version__

# 1: version 0.1, without a checksum.
FORMAT_VERSION: Final = 2
KIND: Final = "segmenter"
# The widest published decoder has about 80 M parameters.
_MAX_DECODER_PARAMETERS: Final = 500_000_000


def save_segmenter(directory: Path, model: Segmenter, *, name: str | None, inference: Inference, force: bool) -> None:
    """Writes `config.json` (with classes, palette, preprocessing and `inference`) and `model.safetensors`.

    Raises `InputError` if one of the files exists and `force` is not given, `DiskError` if they cannot be written,
    `CheckpointError` for non-finite weights.
    """
    write_directory(directory, model, segmenter_content(model, name=name, inference=inference), force=force)


def segmenter_content(model: Segmenter, *, name: str | None, inference: Inference) -> dict[str, Any]:
    """The content of a segmenter's `config.json` without the checksums."""
    backbone: Any = model.backbone
    if getattr(backbone, "config", None) is None:
        raise InputError(
            f"a segmenter on {type(backbone).__name__} is not saved; save its state_dict, or use a backbone of "
            "mambar.create_model."
        )
    ours = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "version": __version__,
        "name": name,
        "backbone": backbone.config.to_dict(),
        "segmenter": model.config.to_dict(),
        "classes": list(model.classes) if model.classes else None,
        "palette": [list(color) for color in model.palette] if model.palette else None,
        "preprocessing": (model.preprocessing or Preprocessing()).to_dict(),
        "inference": inference.to_dict(),
    }
    return {"architecture": "mambar_segmenter", "mambar": ours}


def is_segmenter(directory: str | Path) -> bool:
    """True if the directory contains a saved segmenter."""
    path = model_directory(Path(directory).expanduser()) / CONFIG
    if not path.is_file():
        return False
    ours = read_json(path).get("mambar")
    return isinstance(ours, Mapping) and ours.get("kind") == KIND


def load_segmenter(source: str | Path, *, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter in a run directory, in evaluation mode, with classes, palette and preprocessing.

    Raises `CheckpointError` if config.json or the weights do not match their checksums, or for another kind of model.
    """
    model, _ = load_with_inference(source, device=device)
    return model


def load_with_inference(source: str | Path, *, device: str | torch.device = "cpu") -> tuple[Segmenter, Inference]:
    """The segmenter in a run directory and the `Inference` settings that its evaluation used."""
    directory = Path(source).expanduser()
    if not directory.is_dir():
        raise InputError(f"There is no segmenter at {source}; give the directory of a segmentation run.")
    directory = checkpoint_of_run(directory)
    path = directory / CONFIG
    ours = read_config(path, newest=FORMAT_VERSION)
    if ours.get("kind") != KIND:
        raise CheckpointError(f"{path} describes no segmenter; train one with a segmentation recipe.")
    recorded = ours.get("weights")
    sha256 = recorded.get("sha256") if isinstance(recorded, Mapping) else None
    if not isinstance(sha256, str):
        raise CheckpointError(f"{path} records no sha256 of the weights; copy the run again.")
    state = read_directory_weights(directory)
    with as_checkpoint_error(path):
        backbone = build_model(ours["backbone"], state, directory)
        segmenter_config = SegmenterConfig.from_dict(ours["segmenter"])
        if segmenter_config.channels**2 * 9 * 4 > _MAX_DECODER_PARAMETERS:
            raise InputError(f"channels={segmenter_config.channels} is too large for a decoder.")
        model = Segmenter(backbone, segmenter_config)
        model.classes = _names(ours.get("classes"), segmenter_config.num_classes)
        model.palette = _colours(ours.get("palette"), segmenter_config.num_classes)
        model.preprocessing = Preprocessing.from_dict(ours["preprocessing"])
        inference = Inference.from_dict(ours["inference"])
    load_weights(model, state, origin=str(directory))
    return model.to(device).eval(), inference


def _names(names: Any, count: int) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise InputError(f"classes must be {count} names.")
    return tuple(names)


def _colours(colors: Any, count: int) -> tuple[tuple[int, int, int], ...]:
    found = tuple((int(red), int(green), int(blue)) for red, green, blue in colors)
    if len(found) != count or not all(0 <= band <= 255 for color in found for band in color):
        raise InputError(f"palette must be {count} colors of three numbers from 0 to 255.")
    return found
