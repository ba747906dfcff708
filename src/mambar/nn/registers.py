"""Register tokens: inserted between the patches, and split from them after the blocks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.nn.fused_forward import join_sequence, split_sequence
from mambar.nn.placement import Grid, register_positions
from mambar.nn.tracing import leaf_module


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of a sequence: patches in row order, registers in sequence order, and the patch grid."""

    patches: Float[Tensor, "batch patches dim"]
    registers: Float[Tensor, "batch registers dim"]
    grid: Grid

    def map(self) -> Float[Tensor, "batch dim rows cols"]:
        """The patch tokens as a feature map of `grid` = (rows, cols)."""
        batch, _, dim = self.patches.shape
        return self.patches.transpose(1, 2).reshape(batch, dim, *self.grid)


class RegisterTokens(nn.Module):
    """n learned tokens with their own learned positions, independent of the image.

    In the released code these are `cls_token` and `pos_embed_cls`; here a register is never called cls.
    """

    def __init__(self, embed_dim: int, num_registers: int, placement: str = "evenly") -> None:
        super().__init__()
        self.num_registers = num_registers
        self.placement = placement
        self.embedding = nn.Parameter(torch.zeros(1, num_registers, embed_dim))
        self.position = nn.Parameter(torch.zeros(1, num_registers, embed_dim))

    def positions(self, num_patches: int, grid: Grid | None = None) -> tuple[int, ...]:
        """The positions of the registers among `num_patches` patches (see `mambar.nn.placement`)."""
        return register_positions(self.placement, num_patches, self.num_registers, grid)

    def insert(
        self, patches: Float[Tensor, "batch patches dim"], grid: Grid | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """The sequence of patches, which already carry their position embedding, and registers."""
        batch, num_patches, _ = patches.shape
        registers = (self.embedding + self.position).expand(batch, -1, -1).to(patches.dtype)
        return join_sequence(patches, registers, self.positions(num_patches, grid))

    forward = leaf_module(insert)

    def split(self, tokens: Float[Tensor, "batch length dim"], grid: Grid) -> Tokens:
        """The inverse of `insert`."""
        return split_tokens(tokens, self.placement, self.num_registers, grid)


def split_tokens(
    tokens: Float[Tensor, "batch length dim"], placement: str, num_registers: int, grid: Grid | None = None
) -> Tokens:
    """The patches and registers of a sequence; without a grid the patches count as one row."""
    num_patches = tokens.shape[1] - num_registers
    positions = register_positions(placement, num_patches, num_registers, grid)
    patches, registers = split_sequence(tokens, positions)
    return Tokens(patches=patches, registers=registers, grid=grid or (1, num_patches))
