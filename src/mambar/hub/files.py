"""A model on disk: `config.json` beside `model.safetensors`, written whole or not at all.

The directory is in timm's local format as well (architecture, model_args, pretrained_cfg); what timm does not
know stands under the key "mambar".
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mambar.data.transforms.classification import Preprocessing
from mambar.errors import CheckpointError, CheckpointMismatch, DiskError, InputError
from mambar.hub.safetensors_file import read_safetensors
from mambar.hub.weight_checks import as_checkpoint_error, check_weights, first_non_finite
from mambar.messages import one_line
from mambar.models.complexity import parameter_count
from mambar.models.config import VARIANTS, VisionMambaConfig
from mambar.models.vision_mamba import VisionMamba
from mambar.version import __version__

# 1: version 0.1, whose configuration fields had other names.
FORMAT_VERSION = 2
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# ImageNet-21k's class names fill about one megabyte.
_MOST_JSON_BYTES = 16_000_000
_LARGEST_IMAGE = 16_384


def write_atomically(path: Path, data: bytes) -> str:
    """Writes a file so that `path` always holds either the old bytes or all of the new ones; gives their sha256.

    Temporary file, fsync, rename, fsync of the directory. A symbolic link at `path` is replaced, not followed.
    Raises `DiskError` naming path and bytes; then what was there before is intact and no temporary is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DiskError(
            f"{path} could not be written ({len(data)} bytes): {error.strerror or error}; "
            "what was there before is unchanged."
        ) from error
    return hashlib.sha256(data).hexdigest()


def sync_directory(directory: Path) -> None:
    """Makes renames in a directory last through a power cut, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Readable JSON, one way for every file of the house."""
    # A class named by a folder whose name is no text holds surrogates; \udcXX means the same in JSON.
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def save_model(
    directory: Path,
    model: VisionMamba,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    force: bool = False,
) -> None:
    """Writes `config.json` and `model.safetensors` into `directory`.

    Class names and preprocessing default to those the model carries. Refuses to overwrite either file unless
    `force`; raises `DiskError` where the disk does not take them, `CheckpointError` for non-finite weights.
    """
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
    classes = tuple(classes) if classes is not None else model.classes
    preprocessing = preprocessing or model.preprocessing
    content = config_content(model.config, name=name, classes=classes, preprocessing=preprocessing)
    content["mambar"]["weights"] = {"file": WEIGHTS, "sha256": sha256, "bytes": len(weights)}
    write_atomically(directory / CONFIG, json_bytes(content))


def config_content(
    config: VisionMambaConfig,
    *,
    name: str | None,
    classes: Sequence[str] | None,
    preprocessing: Preprocessing | None,
) -> dict[str, Any]:
    """What stands in `config.json`: timm's keys, and ours under "mambar"."""
    rows, cols = config.size
    preprocessing = preprocessing or Preprocessing(img_size=config.img_size)
    return {
        "architecture": name if name in VARIANTS else "vision_mamba",
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        # timm and transformers' wrapper of it both look for names here.
        **({"label_names": list(classes)} if classes else {}),
        "model_args": {key: value for key, value in config.to_dict().items() if key != "num_classes"},
        "pretrained_cfg": {
            "input_size": [config.in_chans, rows, cols],
            "fixed_input_size": False,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_pct,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": config.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head.classifier",
        },
        "mambar": {
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "name": name,
            "config": config.to_dict(),
            "classes": list(classes) if classes else None,
            "preprocessing": preprocessing.to_dict(),
        },
    }


def load(source: str | Path, *, device: str | torch.device = "cpu") -> VisionMamba:
    """A trained model with its class names (`.classes`) and preprocessing (`.preprocessing`), in evaluation mode.

    source: a run or model directory, a `.safetensors` file beside its config.json, a released `.pth`, or the
    id of a Hugging Face repository ("owner/name"). Weights are verified against the sha256 in config.json.
    """
    path = Path(source)
    if path.is_dir():
        model = load_directory(path)
    elif path.is_file() and path.suffix == ".safetensors" and (path.parent / CONFIG).is_file():
        model = load_directory(path.parent, weights=path)
    elif path.is_file():
        from mambar.hub.released import load_official

        model = load_official(path)
    elif isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/", "~")):
        model = load_directory(_from_hub(source))
    else:
        raise InputError(f"There is no model at {source}; give a run directory, a file or a hub id owner/name.")
    return model.to(device).eval()


def load_directory(directory: Path, *, weights: Path | None = None) -> VisionMamba:
    """The model a directory holds; raises `CheckpointError` for damage, nonsense or a newer format."""
    ours = read_config(directory / CONFIG)
    path = weights or _weights_path(directory, ours)
    state = _read_weights(path, ours)
    with as_checkpoint_error(directory / CONFIG):
        config = VisionMambaConfig.from_dict(ours["config"])
        _refuse_oversize(config, state, directory)
        classes = _class_names(ours.get("classes"), config)
        preprocessing = Preprocessing.from_dict(ours["preprocessing"])
        if max(preprocessing.size) / preprocessing.crop_pct > _LARGEST_IMAGE:
            raise InputError(
                f"img_size={preprocessing.img_size} with crop={preprocessing.crop_pct} resizes above {_LARGEST_IMAGE}."
            )
        model = VisionMamba(config)
    load_weights(model, state, origin=str(path))
    model.classes, model.preprocessing = classes, preprocessing
    return model


def _refuse_oversize(config: VisionMambaConfig, state: Mapping[str, Tensor], directory: Path) -> None:
    """A few bytes of config.json must not make a model of terabytes: it is held against the weights first."""
    described, held = parameter_count(config), sum(tensor.numel() for tensor in state.values())
    if described > 2 * held + 100_000:
        raise CheckpointMismatch(
            f"{directory / CONFIG} describes a model of {described:.4g} parameters, the weights hold {held}."
        )


def _class_names(names: Any, config: VisionMambaConfig) -> tuple[str, ...] | None:
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("classes must be a list of names.")
    if len(names) != config.num_classes:
        raise InputError(f"{len(names)} classes are named, the model has num_classes={config.num_classes}.")
    return tuple(names)


def read_directory_weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of a model directory, verified against the sha256 in its config.json."""
    ours = read_config(directory / CONFIG)
    return _read_weights(_weights_path(directory, ours), ours)


def _weights_path(directory: Path, ours: Mapping[str, Any]) -> Path:
    with as_checkpoint_error(directory / CONFIG):
        name = str(_recorded(ours).get("file", WEIGHTS))
        if not name.isprintable() or len(name) > 200:
            raise CheckpointError(f"{directory / CONFIG} names weights {one_line(repr(name), limit=60)}; refused.")
        path = directory / name
        if path.parent.resolve() != directory.resolve():
            raise CheckpointError(f"{directory / CONFIG} names weights outside its own directory; refused.")
    return path


def _read_weights(path: Path, ours: Mapping[str, Any]) -> dict[str, Tensor]:
    recorded = _recorded(ours)
    sha256 = recorded.get("sha256") if path.name == recorded.get("file", WEIGHTS) else None
    if sha256 is not None and not isinstance(sha256, str):
        raise CheckpointError(f"{path}: the recorded sha256 is a {type(sha256).__name__}, not a text; refused.")
    state = read_safetensors(path, sha256=sha256)
    check_weights(state, origin=path)
    return state


def _recorded(ours: Mapping[str, Any]) -> Mapping[str, Any]:
    recorded = ours.get("weights")
    return recorded if isinstance(recorded, Mapping) else {}


def read_config(path: Path) -> dict[str, Any]:
    """The "mambar" part of a config.json, its version checked."""
    content = read_json(path)
    ours = content.get("mambar")
    if not isinstance(ours, dict) or not isinstance(ours.get("config"), dict):
        raise CheckpointError(f"{path} is no model of mambar: the key 'mambar' is missing.")
    check_format_version(ours, path)
    return ours


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises `CheckpointError` in one line."""
    try:
        size = path.stat().st_size
        if size > _MOST_JSON_BYTES or not path.is_file():
            raise CheckpointError(f"{path} has {size} bytes or is no file; a description of a model is smaller.")
        content = json.loads(path.read_text("utf-8"))
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {str(error).splitlines()[0][:120]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object.")
    return content


def check_format_version(content: Mapping[str, Any], path: Path, known: int = FORMAT_VERSION) -> None:
    """Raises `CheckpointError` where a file was written by a newer version of mambar."""
    version = content.get("format_version")
    if not isinstance(version, int) or version > known:
        raise CheckpointError(
            f"{path} has format_version {one_line(repr(version), limit=40)}; this version reads up to {known}: "
            "update mambar."
        )


def load_weights(model: VisionMamba, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Loads a state dict of ours; raises `CheckpointMismatch` naming both sides."""
    wanted = model.state_dict()
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or unexpected:
        raise CheckpointMismatch(
            f"{origin} does not fit the model: missing {missing[:6] or 'nothing'}, "
            f"unexpected {unexpected[:6] or 'nothing'} ({len(missing)} and {len(unexpected)} in all)."
        )
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointMismatch(
                f"{origin}: {name} has shape {tuple(tensor.shape)}, the model {tuple(wanted[name].shape)}."
            )
    model.load_state_dict(dict(state))


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # hub errors are many (network, names, rights); each is one line for the user
        first = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise InputError(f"{repository} could not be fetched from the Hugging Face hub: {first}") from error
