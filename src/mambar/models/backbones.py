"""Backbones from outside the package by name, and the backbone of any configuration."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from mambar.errors import InputError
from mambar.messages import short_repr
from mambar.models.complexity import parameter_count
from mambar.models.config import VisionMambaConfig, variant
from mambar.models.protocol import TokenModel
from mambar.models.timm_vit import TIMM_PREFIX, TimmConfig, TimmViT, create_timm_vit
from mambar.models.vision_mamba import VisionMamba

Factory = Callable[..., nn.Module]
# Name, as in Recipe.model → a function or class that returns a `TokenModel` module.
BACKBONES: Final[dict[str, Factory]] = {}
# Prefixes of the names of built-in models; see also `Recipe.replace`.
_BUILT_IN: Final = ("mambar_", "vim_", TIMM_PREFIX)


@dataclass(frozen=True, kw_only=True)
class RegisteredConfig:
    """Name and arguments of a backbone in `BACKBONES`; an argument that it does not have raises `InputError`.

    Attributes:
        backbone: the key of `BACKBONES`.
        arguments: keyword arguments of the factory.
    """

    backbone: str
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise InputError(
                f"There is no backbone {short_repr(self.backbone)}; import the module that registers it first "
                "(on the command line: --import FILE)."
            )
        signature, arguments = inspect.signature(BACKBONES[self.backbone]), dict(self.arguments)
        if not arguments.get("drop_path_rate") and "drop_path_rate" not in signature.parameters:
            # A stage always has this field; a backbone without stochastic depth need not.
            arguments.pop("drop_path_rate", None)
            object.__setattr__(self, "arguments", arguments)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise InputError(f"The backbone {self.backbone!r} {error}; it was given {arguments}.") from None

    @property
    def img_size(self) -> int | tuple[int, int]:
        """The input size in pixels: the argument, or the factory's default, or 224."""
        return self._argument("img_size", 224)

    @property
    def num_classes(self) -> int:
        """The number of classes: the argument, or the factory's default, or 0."""
        return self._argument("num_classes", 0)

    def _argument(self, name: str, otherwise: Any) -> Any:
        bound = inspect.signature(BACKBONES[self.backbone]).bind(**self.arguments)
        bound.apply_defaults()
        return self.arguments.get(name, bound.arguments.get(name, otherwise))

    def replace(self, **arguments: Any) -> "RegisteredConfig":
        """A copy with changed arguments."""
        return replace(self, arguments={**self.arguments, **arguments})

    def to_dict(self) -> dict[str, Any]:
        """Both fields as JSON types."""
        return {"backbone": self.backbone, "arguments": dict(self.arguments)}


Config = VisionMambaConfig | TimmConfig | RegisteredConfig


def register_backbone(name: str, factory: Factory | None = None) -> Any:
    """Registers a class or function that returns a `TokenModel` module; without `factory` it returns a decorator.

    A recipe selects it with `model=NAME`. It receives `img_size`, `num_classes` (0: no classifier) and the fields of
    `Recipe.config` as keyword arguments; `drop_path_rate` only if it is above 0 or the factory has that parameter.
    """
    if factory is None:
        return lambda given: register_backbone(name, given)
    if name.startswith(_BUILT_IN) or name == "same":
        raise InputError(f"backbone {name!r} is a name of a built-in model; choose another name.")
    known = BACKBONES.get(name)
    # A factory that is defined again, as in a notebook, replaces the earlier one.
    if known is not None and known.__module__ != factory.__module__:
        raise InputError(f"backbone {name!r} is already registered by {known.__module__}; choose another name.")
    BACKBONES[name] = factory
    return factory


def config_of(name: str, **fields: Any) -> Config:
    """The configuration of a model by name with changed fields; an unknown name or field raises `InputError`."""
    if name.startswith(TIMM_PREFIX):
        return TimmConfig(timm_model=name.removeprefix(TIMM_PREFIX), arguments=fields)
    if name not in BACKBONES:
        return variant(name, registered=BACKBONES).replace(**fields)
    return RegisteredConfig(backbone=name, arguments=fields)


def config_from_dict(fields: Mapping[str, Any]) -> Config:
    """The configuration whose `to_dict` gave `fields`."""
    if "timm_model" not in fields and "backbone" not in fields:
        return VisionMambaConfig.from_dict(fields)
    arguments = {key: tuple(each) if isinstance(each, list) else each for key, each in fields["arguments"].items()}
    if "timm_model" in fields:
        return TimmConfig(timm_model=str(fields["timm_model"]), arguments=arguments)
    return RegisteredConfig(backbone=str(fields["backbone"]), arguments=arguments)


def build_backbone(config: Config) -> Any:
    """The backbone of a configuration with initial weights: a module with the interface `Backbone`."""
    if isinstance(config, VisionMambaConfig):
        return VisionMamba(config)
    if isinstance(config, TimmConfig):
        return create_timm_vit(config.timm_model, **config.arguments)
    module: Any = BACKBONES[config.backbone](**config.arguments)
    if isinstance(module, VisionMamba | TimmViT):
        return module
    if not isinstance(module, nn.Module) or not isinstance(module, TokenModel):
        raise InputError(
            f"The backbone {config.backbone!r} is a {type(module).__name__}; return a torch module with num_layers, "
            "patch_size, embed_dim and tokens()."
        )
    backbone: Any = module
    backbone.config = config
    # What a `TokenModel` need not have.
    defaults = {
        "classes": None,
        "preprocessing": None,
        "num_classes": config.num_classes,
        "no_weight_decay": set,
        "set_grad_checkpointing": _refuse_checkpointing,
        "group_matcher": _refuse_layer_decay,
    }
    for name, default in defaults.items():
        if not hasattr(backbone, name):
            setattr(backbone, name, default)
    return backbone


def num_parameters(config: Config) -> int:
    """The number of parameters of the backbone, counted without memory for them."""
    if isinstance(config, VisionMambaConfig):
        return parameter_count(config)
    with torch.device("meta"):
        return sum(each.numel() for each in build_backbone(config).parameters())


def _refuse_checkpointing(enable: bool = True) -> None:
    if enable:
        raise InputError("grad_checkpointing=true needs a backbone with set_grad_checkpointing(enable); leave it off.")


def _refuse_layer_decay(coarse: bool = False) -> dict[str, Any]:
    raise InputError("layer_decay below 1 needs a backbone with group_matcher(), as timm's models have; leave it at 1.")
