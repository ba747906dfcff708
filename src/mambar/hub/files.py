"""Saves and loads model directories: `config.json` and `model.safetensors`, in timm's format."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mambar.atomic_files import write_atomically
from mambar.data.transforms.classification import Preprocessing
from mambar.errors import CheckpointError, CheckpointMismatch, InputError
from mambar.hub.config_file import CONFIG, json_bytes, model_content, read_config, read_json, with_checksum
from mambar.hub.safetensors_file import read_safetensors
from mambar.hub.weight_checks import as_checkpoint_error, check_weights, first_non_finite
from mambar.hub.weights import TRAINED, trained_directory
from mambar.hub_network import download_failure, offline_if_unreachable
from mambar.messages import one_line
from mambar.models.backbones import build_backbone, config_from_dict, num_parameters
from mambar.models.timm_vit import TimmViT
from mambar.models.vision_mamba import VisionMamba

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
_MAX_IMAGE_SIDE = 16_384
# Kind of a model with a task's heads → its command and its loader.
TASK_KINDS = {
    "segmenter": ("segment", "mambar.segmentation.load_segmenter"),
    "detector": ("detect", "mambar.detection.load_detector"),
}


def save_model(
    directory: Path,
    model: VisionMamba | TimmViT,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    force: bool = False,
) -> None:
    """Writes `config.json` and `model.safetensors` into `directory`.

    Class names and preprocessing default to those of the model. Raises `InputError` if one of the files exists
    and `force` is not given, `DiskError` if they cannot be written, `CheckpointError` for non-finite weights.
    """
    content = model_content(model, name=name, classes=classes, preprocessing=preprocessing)
    write_directory(directory, saved_module(model), content, force=force)


def write_directory(directory: Path, model: nn.Module, content: dict[str, Any], *, force: bool) -> None:
    """Writes the weights of `model`, and `content` with their checksum as `config.json`; see `save_model`."""
    directory = Path(directory)
    refuse_overwrite(directory, (CONFIG, WEIGHTS), force=force)
    directory.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    bad = first_non_finite(state)
    if bad is not None:
        raise CheckpointError(f"{bad} holds NaN or Inf; the weights are not saved.")
    weights = safetensors.torch.save(state, metadata={"format": "pt"})
    sha256 = write_atomically(directory / WEIGHTS, weights)
    write_atomically(directory / CONFIG, config_bytes(content, file=WEIGHTS, sha256=sha256, size=len(weights)))


def config_bytes(content: Mapping[str, Any], *, file: str, sha256: str, size: int, prefix: str = "") -> bytes:
    """`config.json` with its checksum, for weights in `file`; `prefix` precedes the names of the model's tensors."""
    weights = {"file": file, "sha256": sha256, "bytes": size, **({"prefix": prefix} if prefix else {})}
    return json_bytes(with_checksum({**content, "mambar": {**content["mambar"], "weights": weights}}))


def refuse_overwrite(directory: Path, names: Iterable[str], *, force: bool) -> None:
    """Raises `InputError` if one of the files exists in `directory`, unless `force`."""
    taken = [name for name in names if os.path.lexists(directory / name)]
    if taken and not force:
        raise InputError(f"{directory} already holds {' and '.join(taken)}; choose another directory or give --force.")


def load(
    source: str | Path, *, device: str | torch.device = "cpu", verify_checksums: bool = True
) -> VisionMamba | TimmViT:
    """A trained model with its class names (`.classes`) and preprocessing (`.preprocessing`), in evaluation mode.

    source: a run or model directory, a `.safetensors` file beside its config.json, a released `.pth`, the id of a
    Hugging Face repository ("owner/name"), or the name of a model in `weights/` (see `mambar.list_models`). Of a run
    that has not finished, the best checkpoint is used, or the last one before the first evaluation. Of a finished run
    that was extended since, the weights of its end are used. A line of the log says so.
    verify_checksums: raise `CheckpointError` if config.json or the weights do not match the checksums in
    config.json; False accepts a deliberate edit and logs a warning.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        model = load_directory(checkpoint_of_run(path), verify_checksums=verify_checksums)
    elif path.is_file() and path.suffix == ".safetensors" and (path.parent / CONFIG).is_file():
        model = load_directory(path.parent, weights=path, verify_checksums=verify_checksums)
    elif path.is_file():
        from mambar.hub.released import load_official

        model = load_official(path)
    elif str(source) in TRAINED:
        model = load_directory(trained_directory(str(source)), verify_checksums=verify_checksums)
    elif isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/", "~")):
        model = load_directory(_from_hub(source), verify_checksums=verify_checksums)
    else:
        raise InputError(
            f"There is no model at {source} (looked in {Path.cwd()}); give a run directory, a file or owner/name."
        )
    return model.to(device).eval()


def model_directory(directory: Path) -> Path:
    """`directory`, or the checkpoint to use of a run that has not finished: the best evaluated one, else the last."""
    for name in ("best.json", "last.json") if not (directory / CONFIG).is_file() else ():
        pointer = directory / "checkpoints" / name
        if pointer.is_file():
            checkpoint = pointer.parent / Path(str(read_json(pointer).get("name"))).name
            if (checkpoint / CONFIG).is_file():
                return checkpoint
    return directory


def checkpoint_of_run(directory: Path) -> Path:
    """`model_directory`; logs which weights of a run that has not finished are used."""
    found = model_directory(directory)
    if found != directory:
        which = "best" if found.name.startswith("best") else "last"
        logger.warning("%s has not finished; its %s checkpoint is used: checkpoints/%s.", directory, which, found.name)
    elif newer := _checkpoint_of_extension(directory):
        logger.warning(
            "%s was extended and has not finished again; %s from before is used. Newer weights: checkpoints/%s.",
            directory,
            WEIGHTS,
            newer,
        )
    return found


def _checkpoint_of_extension(directory: Path) -> str | None:
    """The last checkpoint of a finished run that was extended, if it is newer than the weights of the finished run."""
    pointer, weights = directory / "checkpoints" / "last.json", directory / WEIGHTS
    if (directory / "result.json").is_file() or not (pointer.is_file() and weights.is_file()):
        return None
    newer = pointer.stat().st_mtime_ns > weights.stat().st_mtime_ns
    return Path(str(read_json(pointer).get("name"))).name if newer else None


def load_directory(
    directory: Path, *, weights: Path | None = None, verify_checksums: bool = True
) -> VisionMamba | TimmViT:
    """The model in a directory; raises `CheckpointError` for damaged or invalid files and newer formats."""
    ours = read_config(directory / CONFIG, verify_checksums=verify_checksums)
    kind = str(ours.get("kind"))
    if kind in TASK_KINDS:
        raise InputError(
            f"{directory} is a {kind}, not a classifier; use `mambar {TASK_KINDS[kind][0]}`, `mambar evaluate` or, "
            f"in Python, {TASK_KINDS[kind][1]}."
        )
    path = weights or _weights_path(directory, ours)
    state = _read_weights(path, ours, verify_checksums=verify_checksums)
    with as_checkpoint_error(directory / CONFIG):
        model = build_model(ours["config"], state, directory)
        classes = _class_names(ours.get("classes"), model.num_classes)
        preprocessing = Preprocessing.from_dict(ours["preprocessing"])
        if max(preprocessing.size) / preprocessing.crop_pct > _MAX_IMAGE_SIDE:
            raise InputError(
                f"img_size={preprocessing.img_size} with crop={preprocessing.crop_pct} resizes above {_MAX_IMAGE_SIDE}."
            )
    load_weights(saved_module(model), state, origin=str(path))
    model.classes, model.preprocessing = classes, preprocessing
    return model


def saved_module(model: VisionMamba | TimmViT) -> nn.Module:
    """The module whose parameters are saved: of a `TimmViT`, timm's model, so that timm can load them too."""
    return model.model if isinstance(model, TimmViT) else model


def build_model(fields: Mapping[str, Any], state: Mapping[str, Tensor], directory: Path) -> Any:
    """The model of a configuration; raises before it is allocated if it is much larger than the weights."""
    saved = sum(tensor.numel() for tensor in state.values())
    config = config_from_dict(fields)
    count = num_parameters(config)
    if count > 2 * saved + 100_000:
        raise CheckpointMismatch(
            f"{directory / CONFIG} describes a model of {count:.4g} parameters, the weights have {saved}."
        )
    return build_backbone(config)


def _class_names(names: Any, num_classes: int) -> tuple[str, ...] | None:
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("classes must be a list of names.")
    if len(names) != num_classes:
        raise InputError(f"there are {len(names)} class names, but num_classes={num_classes}.")
    return tuple(names)


def read_directory_weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of a model directory, verified against the checksums in its config.json."""
    ours = read_config(directory / CONFIG)
    return _read_weights(_weights_path(directory, ours), ours)


def _weights_path(directory: Path, ours: Mapping[str, Any]) -> Path:
    with as_checkpoint_error(directory / CONFIG):
        name = str(_recorded(ours).get("file", WEIGHTS))
        if not name.isprintable() or len(name) > 200:
            raise CheckpointError(
                f"{directory / CONFIG} has an invalid weights file: {one_line(repr(name), limit=60)}."
            )
        path = directory / name
        if path.parent.resolve() != directory.resolve():
            raise CheckpointError(f"{directory / CONFIG} names a weights file outside its own directory; refused.")
    return path


def _read_weights(path: Path, ours: Mapping[str, Any], *, verify_checksums: bool = True) -> dict[str, Tensor]:
    recorded = _recorded(ours)
    sha256 = recorded.get("sha256") if path.name == recorded.get("file", WEIGHTS) else None
    if sha256 is not None and not isinstance(sha256, str):
        raise CheckpointError(f"{path}: the recorded sha256 is a {type(sha256).__name__}, not a string.")
    if not verify_checksums:
        logger.warning("The weights in %s are not verified because of verify_checksums=False.", path)
    state = read_safetensors(path, sha256=sha256 if verify_checksums else None)
    prefix = str(recorded.get("prefix", ""))
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    check_weights(state, origin=path)
    return state


def _recorded(ours: Mapping[str, Any]) -> Mapping[str, Any]:
    recorded = ours.get("weights")
    return recorded if isinstance(recorded, Mapping) else {}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Loads a state dict; raises `CheckpointMismatch` with the missing and unexpected keys."""
    expected = model.state_dict()
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unexpected:
        raise CheckpointMismatch(
            f"{origin} does not fit the model: missing {missing[:6] or 'nothing'}, "
            f"unexpected {unexpected[:6] or 'nothing'} ({len(missing)} and {len(unexpected)} in all)."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointMismatch(
                f"{origin}: {name} has shape {tuple(tensor.shape)}, the model {tuple(expected[name].shape)}."
            )
    model.load_state_dict(dict(state))


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with offline_if_unreachable():
            return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # errors of network, names and permissions have many types
        raise InputError(
            f"{repository} could not be downloaded: {download_failure(error)}. "
            "Download its files elsewhere and give their directory instead of owner/name."
        ) from error
