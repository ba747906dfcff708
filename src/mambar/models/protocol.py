"""What every wing asks of a model: its tokens, layer by layer."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mambar.nn.registers import Tokens

# residual: the stream after a block; mixer: what the block's mixer (or a whole ViT block) adds to it, before
# stochastic depth; normed: the stream after a block through the model's final norm.
TokenTensor = Literal["residual", "mixer", "normed"]


@runtime_checkable
class TokenModel(Protocol):
    """A backbone that can be looked into: Mamba-R, Vim, or one of timm's ViTs through `models.timm_vit`."""

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

    def tokens(
        self,
        images: Float[Tensor, "batch channels height width"],
        layers: Sequence[int] | None = None,
        *,
        tensor: TokenTensor = "residual",
    ) -> list[Tokens]:
        """The tokens of the given layers (layer k = after block k, from 0; None: all), in the order asked."""
        ...

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits, or features where there is no classifier."""
        ...
