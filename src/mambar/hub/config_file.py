"""config.json of a model directory: timm's keys, mambar's under "mambar", and a checksum over both.

The checksum covers everything that affects the output: architecture, configuration, classes, preprocessing and the
sha256 of the weights. Files of format 1 (version 0.1) have none.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import CheckpointError, InputError
from mambar.json_fields import check_format_version
from mambar.messages import one_line
from mambar.models.config import VARIANTS, VisionMambaConfig
from mambar.models.timm_vit import TimmConfig, TimmViT, model_preprocessing
from mambar.models.vision_mamba import VisionMamba
from mambar.version import __version__

logger = logging.getLogger(__name__)

CONFIG = "config.json"
# 1: version 0.1, with other field names and without a checksum.
FORMAT_VERSION = 2
# The class names of ImageNet-21k have about one megabyte.
_MAX_JSON_BYTES = 16_000_000

# Names of the first convolution and of the classifier in timm's `pretrained_cfg` of a `VisionMamba`.
TIMM_LAYERS = {"first_conv": "patch_embed.proj", "classifier": "head.classifier"}


def timm_cfg(preprocessing: Preprocessing, input_size: tuple[int, int, int], num_classes: int) -> dict[str, Any]:
    """timm's `pretrained_cfg`; `input_size` is (channels, height, width)."""
    return {
        "input_size": input_size,
        "fixed_input_size": False,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_pct,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "num_classes": num_classes,
    }


def model_content(
    model: VisionMamba | TimmViT,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> dict[str, Any]:
    """The content of a model's config.json without the checksums; see `mambar.save_model`."""
    config, num_classes = model.config, model.num_classes
    if config is None:
        raise InputError("A TimmViT is saved only if create_model or create_timm_vit made it from standard arguments.")
    classes = model.classes if classes is None else classes
    preprocessing = preprocessing or model_preprocessing(model)
    if not isinstance(config, VisionMambaConfig):
        architecture = config.timm_model.split(".")[0] if isinstance(config, TimmConfig) else config.backbone
        arguments = config.arguments
        input_size, layers = (arguments.get("in_chans", 3), *preprocessing.size), {}
    else:
        architecture, arguments = name if name in VARIANTS else "vision_mamba", config.to_dict()
        input_size, layers = (config.in_chans, *config.size), TIMM_LAYERS
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        # timm and its wrapper in transformers read class names here.
        **({"label_names": list(classes)} if classes else {}),
        **({"num_features": config.embed_dim} if isinstance(config, VisionMambaConfig) else {}),
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes"},
        "pretrained_cfg": timm_cfg(preprocessing, input_size, num_classes) | layers,
        "mambar": {
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "name": name,
            "config": config.to_dict(),
            "classes": list(classes) if classes else None,
            "preprocessing": preprocessing.to_dict(),
        },
    }


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its sha256 under the keys "mambar", "sha256"."""
    return {**content, "mambar": {**content["mambar"], "sha256": _sha256(content)}}


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Indented JSON, encoded as UTF-8."""
    # A class named by an undecodable file name has surrogates; \udcXX is the same in JSON.
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_config(path: Path, *, verify_checksums: bool = True, newest: int = FORMAT_VERSION) -> dict[str, Any]:
    """The "mambar" part of a config.json; raises `CheckpointError` for another version or checksum.

    verify_checksums=False accepts a file that was edited, and logs it.
    """
    content = read_json(path)
    ours = content.get("mambar")
    if not isinstance(ours, dict):
        raise CheckpointError(f"{path} was not written by mambar: the key 'mambar' is missing.")
    check_format_version(ours.get("format_version"), path, newest=newest)
    if ours["format_version"] == 1 and "sha256" not in ours:
        return ours
    if ours.get("sha256") is None or ours["sha256"] != _sha256(content):
        if verify_checksums:
            raise CheckpointError(
                f"{path} was edited or is damaged: its checksum does not match. Restore the file, or accept the edit "
                "with mambar.load(PATH, verify_checksums=False)."
            )
        logger.warning("%s was edited: its checksum does not match; accepted because of verify_checksums=False.", path)
    return ours


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `CheckpointError` in one line, also for a key that is given twice."""
    try:
        size = path.stat().st_size
        if size > _MAX_JSON_BYTES or not path.is_file():
            raise CheckpointError(f"{path} has {size} bytes or is no file; a configuration is smaller.")
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=unique_keys)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object.")
    return content


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` of a JSON reader that refuses duplicate keys."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is given twice")
    return content


def _sha256(content: Mapping[str, Any]) -> str | None:
    ours = {key: value for key, value in content["mambar"].items() if key != "sha256"}
    try:
        text = json.dumps({**content, "mambar": ours}, sort_keys=True)
    except RecursionError:
        return None
    return hashlib.sha256(text.encode()).hexdigest()
