"""Importing this module registers every variant with timm: `timm.create_model("mambar_base_patch16_224")`.

The architecture `vision_mamba`, which run directories name in config.json, takes every field of
`VisionMambaConfig`, so that `timm.create_model("local-dir:RUN", pretrained=True)` builds the trained model.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.deprecated import MODEL_FIELDS, MODEL_VALUES, translate
from mambar.errors import CheckpointMismatch, InputError
from mambar.hub.config_file import CONFIG, TIMM_LAYERS, read_json, timm_cfg
from mambar.hub.convert import convert_checkpoint, detect_source, extract_state_dict, infer_config
from mambar.hub.files import WEIGHTS as MODEL_FILE
from mambar.hub.files import read_directory_weights
from mambar.hub.released import read_official
from mambar.hub.resize import load_pretrained_weights
from mambar.hub.weights import TRAINED, WEIGHTS, released_file, trained_directory
from mambar.models.config import VARIANTS, VisionMambaConfig
from mambar.models.vision_mamba import VisionMamba

logger = logging.getLogger(__name__)

GENERIC = "vision_mamba"

_SOURCES = ("state_dict", "file", "url", "hf_hub_id")


def _pretrained_cfg(name: str) -> dict[str, Any]:
    config = VARIANTS.get(name, VisionMambaConfig())
    cfg = timm_cfg(Preprocessing(img_size=config.img_size), (config.in_chans, *config.size), config.num_classes)
    cfg |= TIMM_LAYERS
    cfg |= {"paper_ids": "arXiv:2405.14858", "paper_name": "Mamba-R: Vision Mamba ALSO Needs Registers"}
    if name in WEIGHTS:
        released = WEIGHTS[name]
        cfg |= {"hf_hub_id": released.repository, "hf_hub_filename": released.file, "license": "unknown"}
    return cfg


def _trained_cfg(name: str) -> dict[str, Any]:
    trained = TRAINED[name]
    return _pretrained_cfg(name.split(".")[0]) | {
        # Not opened by timm; it marks the name as one with weights.
        "file": f"{name}/{MODEL_FILE}",
        "crop_pct": trained.crop_pct,
        "num_classes": len(trained.classes),
        "label_names": trained.classes,
        "license": trained.licence,
    }


_CFGS: dict[str, dict[str, Any] | PretrainedCfg] = {
    **{f"{name}.in1k" if name in WEIGHTS else name: _pretrained_cfg(name) for name in (*VARIANTS, GENERIC)},
    **{name: _trained_cfg(name) for name in TRAINED},
}
default_cfgs = generate_default_cfgs(_CFGS)
# timm prefers a tag with weights; here the name without a tag keeps its 1,000 classes.
for _name in TRAINED:
    default_cfgs[_name.split(".")[0]].tags.rotate()


def _architecture(base: VisionMambaConfig) -> Callable[..., VisionMamba]:
    """The model class for `build_model_with_cfg`: a function of timm's model arguments."""

    def build(**arguments: Any) -> VisionMamba:
        # A config.json written by version 0.1 has the old field names in `model_args`.
        fields = translate(arguments, MODEL_FIELDS, MODEL_VALUES)
        if "global_pool" in fields:
            fields["head"] = fields.pop("global_pool")
        if isinstance(fields.get("img_size"), list):
            fields["img_size"] = tuple(fields["img_size"])
        device, dtype = fields.pop("device", None), fields.pop("dtype", None)
        with torch.device(torch.get_default_device() if device is None else device):
            model = VisionMamba(base.replace(**fields))
        return model if dtype is None else model.to(dtype)

    return build


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A state dict that timm can load into `model`; a released checkpoint is converted.

    Positions are resized to the model's grid. Head and registers of another size keep the model's initial values.
    The patch projection is unchanged; timm adapts it to other input channels.
    """
    assert isinstance(model, VisionMamba)
    tensors = extract_state_dict(state)
    if "pos_embed.weight" in tensors:
        source = model.config.replace(img_size=_source_size(tensors, model))
    else:
        config = infer_config(tensors)
        tensors = convert_checkpoint(tensors, source=detect_source(tensors), config=config)
        source = model.config.replace(img_size=config.img_size)
    patches = tensors.pop("patch_embed.proj.weight")
    own = model.patch_embed.proj.weight
    load_pretrained_weights(model, {**tensors, "patch_embed.proj.weight": own}, source)
    return {**model.state_dict(), "patch_embed.proj.weight": patches}


def _source_size(state: Mapping[str, Tensor], model: VisionMamba) -> tuple[int, int]:
    """The image size of the checkpoint: from its config.json, else the model's, else square."""
    table, patch = state["pos_embed.weight"].shape[1], model.patch_size
    side = math.isqrt(table)
    saved = vars(model).get("pretrained_model_args") or {}
    size = saved.get("img_size") or saved.get("image_size") or model.pretrained_cfg.get("input_size", (3, 0, 0))[1:]
    size = (size, size) if isinstance(size, int) else tuple(size)
    for height, width in (size, model.config.size, (side * patch, side * patch)):
        if (height // patch) * (width // patch) == table:
            return height, width
    raise CheckpointMismatch(
        f"pos_embed.weight has {table} rows, which is no square grid; give pretrained_cfg_overlay="
        "dict(input_size=(channels, height, width)) of the checkpoint."
    )


def _create(name: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
    arguments = translate(arguments, MODEL_FIELDS, MODEL_VALUES)
    verified = _verified_weights(name, arguments) if pretrained else None
    if verified is not None:
        overlay = {**(arguments.get("pretrained_cfg_overlay") or {}), "state_dict": verified, "source": None}
        arguments["pretrained_cfg_overlay"] = overlay
    feature_cfg = {"out_indices": arguments.pop("out_indices", 3), "feature_cls": "getter"}
    feature_cfg |= arguments.pop("feature_cfg", None) or {}
    model = build_model_with_cfg(
        _architecture(VARIANTS.get(name, VisionMambaConfig())),
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=feature_cfg,
        **arguments,
    )
    if verified is not None:
        model.pretrained_cfg.pop("state_dict", None)
    return model


def _verified_weights(name: str, arguments: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The weights that timm is about to load, read and verified by mambar; None if timm has to load them.

    mambar reads released weights (verified against the first download) and run directories (verified against
    config.json). timm loads a file, state dict or repository that the caller names.
    """
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    given = arguments.get("pretrained_cfg")
    if any(overlay.get(source) for source in _SOURCES):
        return None
    cfg = dataclasses.asdict(resolve_pretrained_cfg(name, given, overlay))
    trained = f"{name}.{cfg['tag']}"
    if trained in TRAINED and cfg["file"] == f"{trained}/{MODEL_FILE}":
        return read_directory_weights(trained_directory(trained))
    if cfg["source"] == "local-dir":
        directory = Path(str(cfg["file"]))
        ours = "mambar" in read_json(directory / CONFIG)
        return read_directory_weights(directory) if ours else None
    if name in WEIGHTS and cfg["hf_hub_id"] == WEIGHTS[name].repository and not (cfg["file"] or cfg["url"]):
        if arguments.get("cache_dir") is not None:
            logger.warning("cache_dir has no effect on released weights; they are in the Hugging Face cache (HF_HOME).")
        return read_official(released_file(name))
    if not any(cfg[source] for source in _SOURCES):
        raise InputError(
            f"No weights of {name} can be downloaded; there are {', '.join(WEIGHTS)}. Use pretrained=False, or "
            "pretrained_cfg_overlay=dict(file=PATH)."
        )
    return None


def _register(name: str) -> None:
    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return _create(name, pretrained=pretrained, **arguments)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"A `VisionMamba` of the architecture {name}; takes timm's and `VisionMambaConfig`'s arguments."
    globals()[name] = register_model(create)


for _name in (*VARIANTS, GENERIC):
    _register(_name)
