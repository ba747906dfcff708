"""Saves and loads detector directories: `config.json` and `model.safetensors`."""

from pathlib import Path
from typing import Any, Final

import torch

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.detection.detector import Detector, DetectorConfig
from mambar.hub.config_file import CONFIG
from mambar.hub.files import load_weights, write_directory
from mambar.hub.task_model import class_names, read_task_model, task_model_content
from mambar.hub.weight_checks import as_checkpoint_error
from mambar.json_fields import from_json_fields, to_json_fields

KIND: Final = "detector"


def save_detector(directory: Path, model: Detector, *, name: str | None = None, force: bool = False) -> None:
    """Writes `config.json` (with classes and preprocessing) and `model.safetensors`.

    Raises `InputError` if one of the files exists and `force` is not given, `DiskError` if they cannot be written,
    `CheckpointError` for non-finite weights.
    """
    write_directory(directory, model, detector_content(model, name=name), force=force)


def detector_content(model: Detector, *, name: str | None) -> dict[str, Any]:
    """The content of a detector's `config.json` without the checksums."""
    return task_model_content(model, KIND, name=name, detector=to_json_fields(model.config))


def load_detector(source: str | Path, *, device: str | torch.device = "cpu") -> Detector:
    """The detector in a run directory, in evaluation mode, with classes and preprocessing.

    Raises `CheckpointError` if config.json or the weights do not match their checksums, or for another kind of model.
    """
    directory, ours, state, backbone = read_task_model(source, KIND, noun="detection")
    with as_checkpoint_error(directory / CONFIG):
        model = Detector(backbone, from_json_fields(DetectorConfig, ours["detector"], what="a detector"))
        model.classes = class_names(ours.get("classes"), model.config.num_classes)
        model.preprocessing = Preprocessing.from_dict(ours["preprocessing"])
    load_weights(model, state, origin=str(directory))
    return model.to(device).eval()
