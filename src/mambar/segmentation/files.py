"""Saves and loads segmenter directories: `config.json` and `model.safetensors`."""

from pathlib import Path
from typing import Any, Final

import torch

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import InputError
from mambar.hub.config_file import CONFIG
from mambar.hub.files import load_weights, write_directory
from mambar.hub.task_model import class_names, is_task_model, read_task_model, task_model_content
from mambar.hub.weight_checks import as_checkpoint_error
from mambar.nn.cuda_graph import use_cuda_graphs
from mambar.segmentation.decoders import SegmenterConfig
from mambar.segmentation.inference import Inference
from mambar.segmentation.segmenter import Segmenter

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
    palette = [list(color) for color in model.palette] if model.palette else None
    fields = {"segmenter": model.config.to_dict(), "palette": palette, "inference": inference.to_dict()}
    return task_model_content(model, KIND, name=name, **fields)


def is_segmenter(directory: str | Path) -> bool:
    """True if the directory contains a saved segmenter."""
    return is_task_model(directory, KIND)


def load_segmenter(source: str | Path, *, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter in a run directory, in evaluation mode, with classes, palette and preprocessing.

    Raises `CheckpointError` if config.json or the weights do not match their checksums, or for another kind of model.
    """
    model, _ = load_with_inference(source, device=device)
    return model


def load_with_inference(source: str | Path, *, device: str | torch.device = "cpu") -> tuple[Segmenter, Inference]:
    """The segmenter in a run directory and the `Inference` settings that its evaluation used."""
    directory, ours, state, backbone = read_task_model(source, KIND, noun="segmentation")
    with as_checkpoint_error(directory / CONFIG):
        segmenter_config = SegmenterConfig.from_dict(ours["segmenter"])
        if segmenter_config.channels**2 * 9 * 4 > _MAX_DECODER_PARAMETERS:
            raise InputError(f"channels={segmenter_config.channels} is too large for a decoder.")
        model = Segmenter(backbone, segmenter_config)
        model.classes = class_names(ours.get("classes"), segmenter_config.num_classes)
        model.palette = _colours(ours.get("palette"), segmenter_config.num_classes)
        model.preprocessing = Preprocessing.from_dict(ours["preprocessing"])
        inference = Inference.from_dict(ours["inference"])
    load_weights(model, state, origin=str(directory))
    return use_cuda_graphs(model.to(device).eval()), inference


def _colours(colors: Any, count: int) -> tuple[tuple[int, int, int], ...]:
    found = tuple((int(red), int(green), int(blue)) for red, green, blue in colors)
    if len(found) != count or not all(0 <= band <= 255 for color in found for band in color):
        raise InputError(f"palette must be {count} colors of three numbers from 0 to 255.")
    return found
