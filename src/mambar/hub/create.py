"""Creates models by name."""

from typing import Any

from mambar.errors import InputError
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
    pretrained: bool = False,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    **config_fields: Any,
) -> VisionMamba | TimmViT:
    """A model by name; keyword arguments override fields of its `VisionMambaConfig`.

    "timm/NAME" is a plain vision transformer of timm; its keyword arguments are those of `timm.create_model`. A name
    registered by `mambar.register_backbone` gives that backbone; its keyword arguments are those of the factory.

    pretrained: download (once), verify and convert the released weights. Positions are resized to another
    `img_size`; a head or registers of another size keep their initial values. Raises `InputError` for an unknown
    name or field, or if no weights were released.
    """
    given = {"img_size": img_size, "num_classes": num_classes}
    fields = {**config_fields, **{field: value for field, value in given.items() if value is not None}}
    if name.startswith(TIMM_PREFIX):
        return create_timm_vit(name.removeprefix(TIMM_PREFIX), pretrained=pretrained, **fields)
    if pretrained and name in BACKBONES:
        raise InputError(f"pretrained=True: no weights were released for the registered backbone {name!r}.")
    model = build_backbone(config_of(name, **fields))
    if pretrained:
        released = load_official(released_file(name))
        load_pretrained_weights(model, released.state_dict(), released.config)
    return model
