"""Creates models by name."""

from pathlib import Path
from typing import Any

from mambar.errors import InputError
from mambar.hub.files import load
from mambar.hub.released import load_official
from mambar.hub.resize import load_pretrained_weights
from mambar.hub.weights import WEIGHTS, released_file
from mambar.models.backbones import BACKBONES, build_backbone, config_of
from mambar.models.config import VARIANTS
from mambar.models.timm_vit import TIMM_PREFIX, TimmViT, create_timm_vit
from mambar.models.vision_mamba import VisionMamba


def list_models(*, pretrained: bool = False) -> list[str]:
    """The model names that `create_model` accepts; `pretrained`: only those with released weights."""
    return [name for name in VARIANTS if not pretrained or name in WEIGHTS]


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
    registered by `mambar.register_backbone` gives that backbone; its keyword arguments are those of the factory.

    pretrained: True: download (once), verify and convert the released weights. A path or hub id: take the weights of
    that model instead, see `mambar.load`. Positions are resized to another `img_size`; a head or registers of another
    size keep their initial values. Raises `InputError` for an unknown name or field, or if no weights were released,
    `CheckpointMismatch` for weights of another architecture.
    """
    source = None if isinstance(pretrained, bool) else load(pretrained)
    given = {"img_size": img_size, "num_classes": num_classes}
    fields = {**config_fields, **{field: value for field, value in given.items() if value is not None}}
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
