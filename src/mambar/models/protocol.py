"""The interfaces of a model: `TokenModel` for analysis and evaluation, `Backbone` for training and saving too."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import InputError
from mambar.nn.registers import Tokens

# residual: the residual stream after a block; mixer: what the block's mixer (or a whole ViT block) adds to it, before
# stochastic depth; normed: the stream after a block and the model's final norm.
TokenTensor = Literal["residual", "mixer", "normed"]
# Normalized images, and layers by number: from 0, negative from the last one; None for all.
Images = Float[Tensor, "batch channels height width"]
Layers = Sequence[int] | None


@runtime_checkable
class TokenModel(Protocol):
    """A model whose tokens can be read layer by layer: `VisionMamba`, `TimmViT`, or your own."""

    @property
    def num_layers(self) -> int:
        """The number of blocks."""
        ...

    @property
    def patch_size(self) -> int:
        """The side of a patch in pixels."""
        ...

    @property
    def embed_dim(self) -> int:
        """The width of a token."""
        ...

    def tokens(self, images: Images, layers: Layers = None, *, tensor: TokenTensor = "residual") -> list[Tokens]:
        """The tokens of the given layers (layer k = after block k, from 0; None: all), in the given order."""
        ...

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        """Logits, or features if there is no classifier."""
        ...


def layer_indices(model: TokenModel, layers: Layers) -> list[int]:
    """The layers as numbers from 0; None: all layers; negative numbers count from the last layer.

    Raises `InputError` for a layer that does not exist.
    """
    count = model.num_layers
    for layer in layers or ():
        if not -count <= layer < count:
            raise InputError(f"layer {layer} does not exist; the model has layers 0 to {count - 1}.")
    return list(range(count)) if layers is None else [layer % count for layer in layers]


@runtime_checkable
class BackboneConfig(Protocol):
    """The configuration from which a backbone is built again; a frozen dataclass."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        ...


@runtime_checkable
class Backbone(TokenModel, Protocol):
    """A `TokenModel` that can be trained, saved and loaded: `VisionMamba`, `TimmViT`, or your own `nn.Module`.

    The methods are those of timm's models; parameter names in `no_weight_decay` and `group_matcher` are those of
    `named_parameters()`.
    """

    classes: tuple[str, ...] | None
    """The class names, if known."""

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing of images, if known."""
        ...

    @property
    def config(self) -> BackboneConfig | None:
        """The current configuration, after `reset_classifier` for example; None if the model cannot be saved."""
        ...

    @property
    def num_classes(self) -> int:
        """The number of logits; 0 if `forward` returns features."""
        ...

    @property
    def head_hidden_size(self) -> int:
        """The width of the classifier's input."""
        ...

    def get_classifier(self) -> nn.Module:
        """The layer that computes the logits, or an identity."""
        ...

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a new one; 0 removes it."""
        ...

    def no_weight_decay(self) -> set[str]:
        """The names of the parameters without weight decay."""
        ...

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns that assign parameter names to layers, for layer-wise learning-rate decay."""
        ...

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes activations in the backward pass."""
        ...
