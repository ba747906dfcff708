"""timm's plain vision transformers (ViT, DeiT, DINO, EVA, BEiT) as token models.

Their class, distillation and register tokens, which precede the patches, become `Tokens.registers`.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import InputError
from mambar.hub_network import download_failure, offline_if_unreachable
from mambar.json_fields import check_names
from mambar.messages import one_line
from mambar.models.protocol import Images, Layers, TokenTensor, layer_indices
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.registers import Tokens

# Prefix of the names of timm's vision transformers.
TIMM_PREFIX = "timm/"
# Arguments of `timm.create_model` that a configuration may have, with their largest values; none reads a file.
_ARGUMENTS: dict[str, int] = {
    **dict.fromkeys(("num_classes", "img_size", "embed_dim"), 100_000),
    **dict.fromkeys(("depth", "num_heads", "in_chans", "patch_size", "reg_tokens", "mlp_ratio"), 256),
    **dict.fromkeys(("drop_path_rate", "drop_rate", "proj_drop_rate", "attn_drop_rate", "patch_drop_rate"), 1),
    **dict.fromkeys(("init_values", "qkv_bias", "class_token", "global_pool", "dynamic_img_size"), 1),
}


@dataclass(frozen=True, kw_only=True)
class TimmConfig:
    """Name and arguments of a `TimmViT`.

    Attributes:
        timm_model: the model's name in timm, without the prefix "timm/".
        arguments: keyword arguments of `timm.create_model`.
    """

    timm_model: str
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_names(self.arguments, _ARGUMENTS, what="A timm backbone has no argument")
        for name, value in self.arguments.items():
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not 0 <= number <= _ARGUMENTS[name]:
                    raise InputError(f"{name}={one_line(repr(value))} must be from 0 to {_ARGUMENTS[name]}.")

    def replace(self, **arguments: Any) -> "TimmConfig":
        """A copy with changed arguments."""
        return dataclasses.replace(self, arguments={**self.arguments, **arguments})

    def to_dict(self) -> dict[str, Any]:
        """Both fields as JSON types."""
        return {"timm_model": self.timm_model, "arguments": dict(self.arguments)}


class TimmViT(nn.Module):
    """A plain vision transformer of timm with the interface of `Backbone`.

    Takes VisionTransformer (also DeiT and DINO models), Eva (also DINOv3) and Beit; raises `InputError` for
    anything else. Its `tokens` are bit-equal to timm's `forward_intermediates`. `config` is None for a model that was
    not made by `create_timm_vit`; such a model cannot be saved by `mambar.save_model`.
    """

    # One of three classes of timm. They are not in signatures, because timm is imported only when it is used.
    model: Any

    def __init__(self, model: nn.Module, *, config: TimmConfig | None = None) -> None:
        super().__init__()
        from timm.models.beit import Beit
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer

        if not isinstance(model, (VisionTransformer, Eva, Beit)):
            raise InputError(
                f"{type(model).__name__} is no plain vision transformer of timm; give a VisionTransformer, Eva or Beit."
            )
        self.model = model
        self.config = config
        self.classes: tuple[str, ...] | None = None
        self._preprocessing: Preprocessing | None = None

    @property
    def num_layers(self) -> int:
        """The number of blocks."""
        return len(self.model.blocks)

    @property
    def patch_size(self) -> int:
        """The side of a patch in pixels."""
        height, width = self.model.patch_embed.patch_size
        if height != width:
            raise InputError(f"patches of {height}x{width} pixels are not square; choose another model.")
        return int(height)

    @property
    def embed_dim(self) -> int:
        """The width of a token."""
        return int(self.model.embed_dim)

    @property
    def num_registers(self) -> int:
        """The number of class, distillation and register tokens in front of the patches."""
        return int(self.model.num_prefix_tokens)

    @property
    def register_names(self) -> tuple[str, ...]:
        """The kind of each of these tokens: class token, distillation token, register."""
        from timm.models.beit import Beit

        registers = 0 if isinstance(self.model, Beit) else int(self.model.num_reg_tokens)
        first = ("class token", "distillation token")[: self.num_registers - registers]
        return (*first, *(f"register {place}" for place in range(registers)))

    @property
    def num_classes(self) -> int:
        """The number of logits; 0 if `forward` returns features."""
        return int(self.model.num_classes)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that was set, else timm's at the image size of the model."""
        if self._preprocessing is not None:
            return self._preprocessing
        cfg = self.model.pretrained_cfg
        height, width = self.model.patch_embed.img_size
        return Preprocessing(
            img_size=height if height == width else (height, width),
            crop_pct=cfg["crop_pct"],
            interpolation=cfg["interpolation"],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
        )

    @preprocessing.setter
    def preprocessing(self, preprocessing: Preprocessing | None) -> None:
        self._preprocessing = preprocessing

    @property
    def head_hidden_size(self) -> int:
        """The width of the classifier's input."""
        return int(self.model.head_hidden_size)

    def get_classifier(self) -> nn.Module:
        """The linear layer that computes the logits, or an identity."""
        return self.model.get_classifier()

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a new one for `num_classes`; 0 removes it."""
        self.model.reset_classifier(num_classes)
        if self.config is not None:
            self.config = self.config.replace(num_classes=num_classes)

    def no_weight_decay(self) -> set[str]:
        """timm's parameters without weight decay, under their names in this module."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns, for the parameter names of this module."""

        def prefixed(patterns: Any) -> Any:
            if isinstance(patterns, str):
                return rf"^model\.(?:{patterns.replace('^', '')})"
            return [(prefixed(pattern), *rest) for pattern, *rest in patterns]

        return {name: prefixed(patterns) for name, patterns in self.model.group_matcher(coarse=coarse).items()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of storing its activations."""
        self.model.set_grad_checkpointing(enable)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return self.model(images)

    def tokens(self, images: Images, layers: Layers = None, *, tensor: TokenTensor = "residual") -> list[Tokens]:
        """The tokens of the given layers (from 0; negative: from the end; None: all), prefix tokens apart.

        `mixer` is what a whole block, attention and MLP, adds to the stream; in training mode after stochastic
        depth, unlike `VisionMamba`'s.
        """
        wanted = layer_indices(self, layers)
        if tensor not in ("residual", "mixer", "normed"):
            raise InputError(f"tensor={tensor!r} is not known; choose residual, mixer or normed.")
        if not wanted:
            return []
        added: dict[int, Tensor] = {}
        hooks = [self._watch(index, added) for index in set(wanted)] if tensor == "mixer" else []
        try:
            found = self.model.forward_intermediates(
                images,
                indices=sorted(set(wanted)),
                return_prefix_tokens=True,
                norm=tensor == "normed",
                stop_early=True,
                intermediates_only=True,
            )
        finally:
            for hook in hooks:
                hook.remove()
        streams = {index: _tokens(each) for index, each in zip(sorted(set(wanted)), found, strict=True)}
        count = self.num_registers
        for index, each in added.items():
            streams[index] = Tokens(patches=each[:, count:], registers=each[:, :count], grid=streams[index].grid)
        return [streams[index] for index in wanted]

    def _watch(self, index: int, added: dict[int, Tensor]) -> Any:
        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            added[index] = output - inputs[0]

        return self.model.blocks[index].register_forward_hook(keep)


def _tokens(found: Tensor | tuple[Tensor, Tensor]) -> Tokens:
    """`Tokens` of an entry of `forward_intermediates`: a map, or a map and the prefix tokens."""
    maps, prefix = found if isinstance(found, tuple) else (found, None)
    patches = maps.flatten(2).transpose(1, 2)  # (B, M, D)
    grid = (maps.shape[2], maps.shape[3])
    return Tokens(patches=patches, registers=patches[:, :0] if prefix is None else prefix, grid=grid)


def model_preprocessing(model: Any) -> Preprocessing:
    """The backbone's preprocessing; by default timm's at the model's image size."""
    if model.preprocessing is not None:
        return model.preprocessing
    config = model.config
    size = config.img_size if isinstance(model, VisionMamba) else config.arguments.get("img_size", 224)
    return Preprocessing(img_size=size)


def as_vision_mamba(model: nn.Module, feature: str) -> VisionMamba:
    """The model itself; raises `InputError` if it is not a `VisionMamba`, which `feature` requires."""
    if not isinstance(model, VisionMamba):
        raise InputError(f"{feature} is for Mamba-R and Vim models only; got {type(model).__name__}.")
    return model


def create_timm_vit(
    name: str,
    *,
    pretrained: bool = False,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    **timm_arguments: Any,
) -> TimmViT:
    """A plain vision transformer of timm by its name there, for example `deit_base_patch16_224`.

    Takes images of any size that is a multiple of the patch, where timm's class allows that (positions are
    resized, `dynamic_img_size`). Raises `InputError` for an unknown name or another kind of model.
    """
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(timm.list_models(f"{name[:6]}*")[:5]) or "see timm.list_models('*vit*')"
        raise InputError(f"timm has no model {name!r}; near it: {near}.")
    arguments = {**timm_arguments, "img_size": img_size, "num_classes": num_classes}
    try:
        with offline_if_unreachable() if pretrained else contextlib.nullcontext():
            try:
                model = timm.create_model(name, pretrained=pretrained, **{"dynamic_img_size": True, **arguments})
            except TypeError:
                # Classes without dynamic sizes (Beit) do not have the argument.
                model = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise InputError(f"timm/{name}: {one_line(error)}; see the arguments of this model in timm.") from error
    except OSError as error:
        raise InputError(
            f"The weights of timm/{name} could not be downloaded: {download_failure(error)}. Run once with a network, "
            "copy the cache, or omit pretrained."
        ) from error
    given = {key: value for key, value in arguments.items() if value is not None}
    savable = _ARGUMENTS.keys() >= given.keys()
    config = TimmConfig(timm_model=name, arguments={**given, "num_classes": model.num_classes}) if savable else None
    vit = TimmViT(model, config=config)
    sides = img_size if isinstance(img_size, tuple) else (img_size or 0,)
    if any(side % vit.patch_size for side in sides):
        raise InputError(f"img_size={img_size} is not a multiple of the patch size of timm/{name}, {vit.patch_size}.")
    return vit
