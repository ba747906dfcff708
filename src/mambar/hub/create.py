"""Creates models by name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mambar.errors import InputError
from mambar.hub.files import load
from mambar.hub.released import load_official
from mambar.hub.resize import load_pretrained_weights
from mambar.hub.weights import TRAINED, WEIGHTS, released_file
from mambar.models.backbones import BACKBONES, build_backbone, config_of
from mambar.models.config import VARIANTS
from mambar.models.timm_vit import TIMM_PREFIX, TimmViT, create_timm_vit
from mambar.models.vision_mamba import VisionMamba


def list_models(*, pretrained: bool = False) -> list[str]:
    """The model names that `create_model` accepts; `pretrained`: those with released weights or in `weights/`."""
    return [*WEIGHTS, *TRAINED] if pretrained else list(VARIANTS)


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    **config_fields: Any,
) -> VisionMamba | TimmViT:
    """A model by name; keyword arguments override fields of its `VisionMambaConfig`.

    "timm/NAME" is a plain vision transformer of timm; its keyword arguments are those of `timm.create_model`. A name
    registered by `mambar.register_backbone` gives that backbone; its keyword arguments are those of the factory. A
    name with a tag, such as "mambar_tiny_patch16_224.clothing", is a trained model in `weights/`, always with its
    weights.

    pretrained: True: download (once), verify and convert the released weights. A path or hub id: take the weights of
    that model instead, see `mambar.load`. Positions are resized to another `img_size`; a head or registers of another
    size keep their initial values. Raises `InputError` for an unknown name or field, or if no weights were released,
    `CheckpointMismatch` for weights of another architecture.
    """
    given = {"img_size": img_size, "num_classes": num_classes}
    fields = {**config_fields, **{field: value for field, value in given.items() if value is not None}}
    if name in TRAINED:
        if not isinstance(pretrained, bool):
            raise InputError(f"{name} has its own weights, got pretrained={str(pretrained)!r}; omit it, or the tag.")
        return _trained_model(name, fields)
    source = None if isinstance(pretrained, bool) else load(pretrained)
    if name.startswith(TIMM_PREFIX):
        model = create_timm_vit(name.removeprefix(TIMM_PREFIX), pretrained=pretrained is True, **fields)
    elif pretrained is True and name in BACKBONES:
        raise InputError(f"pretrained=True: no weights were released for the registered backbone {name!r}.")
    else:
        config = config_of(name, **fields)
        source = load_official(released_file(name)) if pretrained is True else source
        model = build_backbone(config)
    if source is not None:
        load_pretrained_weights(model, source.state_dict(), source.config)
    return model


def _trained_model(name: str, fields: Mapping[str, Any]) -> VisionMamba:
    """A model in `weights/` with changed fields; class names stay if their number does."""
    source = load(name)
    assert isinstance(source, VisionMamba) and source.preprocessing is not None
    model = VisionMamba(source.config.replace(**fields))
    load_pretrained_weights(model, source.state_dict(), source.config)
    model.classes = source.classes if model.num_classes == source.num_classes else None
    model.preprocessing = replace(source.preprocessing, img_size=model.config.img_size)
    return model
