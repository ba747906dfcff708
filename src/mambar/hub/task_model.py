"""Directories of models with a task's heads on a backbone: `config.json` and `model.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import CheckpointError, InputError
from mambar.hub.config_file import CONFIG, read_config, read_json
from mambar.hub.files import TASK_KINDS, build_model, checkpoint_of_run, model_directory, read_directory_weights
from mambar.hub.weight_checks import as_checkpoint_error
from mambar.version import __version__

# 1: version 0.1, without a checksum.
FORMAT_VERSION: Final = 2


def task_model_content(model: Any, kind: str, *, name: str | None, **fields: Any) -> dict[str, Any]:
    """The content of config.json without the checksums: backbone, classes, preprocessing, and `fields`."""
    if getattr(model.backbone, "config", None) is None:
        raise InputError(
            f"a {kind} on {type(model.backbone).__name__} is not saved; save its state_dict, or use a backbone of "
            "mambar.create_model."
        )
    ours = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "version": __version__,
        "name": name,
        "backbone": model.backbone.config.to_dict(),
        "classes": list(model.classes) if model.classes else None,
        "preprocessing": (model.preprocessing or Preprocessing()).to_dict(),
        **fields,
    }
    return {"architecture": f"mambar_{kind}", "mambar": ours}


def is_task_model(directory: str | Path, kind: str) -> bool:
    """True if the directory contains a saved model of this kind."""
    path = model_directory(Path(directory).expanduser()) / CONFIG
    if not path.is_file():
        return False
    ours = read_json(path).get("mambar")
    return isinstance(ours, Mapping) and ours.get("kind") == kind


def read_task_model(source: str | Path, kind: str, *, noun: str) -> tuple[Path, dict[str, Any], dict[str, Tensor], Any]:
    """(directory, config, weights, backbone without weights) of the model of a run; `noun` names the task.

    Raises `CheckpointError` if config.json or the weights do not match their checksums, or for another kind of model.
    """
    directory = Path(source).expanduser()
    if not directory.is_dir():
        raise InputError(f"There is no {kind} at {source}; give the directory of a {noun} run.")
    directory = checkpoint_of_run(directory)
    path = directory / CONFIG
    ours = read_config(path, newest=FORMAT_VERSION)
    found = str(ours.get("kind"))
    if found != kind:
        described = f"a {found} (use `mambar {TASK_KINDS[found][0]}`)" if found in TASK_KINDS else f"no {kind}"
        raise CheckpointError(f"{path} describes {described}; train a {kind} with a {noun} recipe.")
    recorded = ours.get("weights")
    sha256 = recorded.get("sha256") if isinstance(recorded, Mapping) else None
    if not isinstance(sha256, str):
        raise CheckpointError(f"{path} records no sha256 of the weights; copy the run again.")
    state = read_directory_weights(directory)
    with as_checkpoint_error(path):
        return directory, ours, state, build_model(ours["backbone"], state, directory)


def class_names(names: Any, count: int) -> tuple[str, ...]:
    """The names as stored in config.json; InputError unless there are `count`."""
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise InputError(f"classes must be {count} names.")
    return tuple(names)
