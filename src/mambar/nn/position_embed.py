"""Absolute position embedding of patches, and its resizing to another grid."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mambar.nn.tracing import leaf_module


def resize_positions(
    position: Float[Tensor, "1 patches dim"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "1 new_patches dim"]:
    """The position table for another patch grid, by bicubic interpolation.

    Kernel parameter -0.75, half-pixel centres, border indices clamped, no anti-aliasing: the resize of the
    released fine-tuning (golden case `pos_interp`). For the same grid the table itself is returned.
    """
    if old_grid == new_grid:
        return position
    dim = position.shape[-1]
    table = position.reshape(1, *old_grid, dim).permute(0, 3, 1, 2)
    dtype = torch.promote_types(position.dtype, torch.float32)
    table = functional.interpolate(table.to(dtype), size=new_grid, mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).reshape(1, -1, dim).to(position.dtype)


class PositionEmbed(nn.Module):
    """A learned vector for each position of the patch grid, added to the patches; resized for other grids.

    The sum, which starts the residual stream, has at least float32 precision.
    """

    def __init__(self, embed_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.zeros(1, grid[0] * grid[1], embed_dim))

    @leaf_module
    def forward(
        self, patches: Float[Tensor, "batch patches dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch patches dim"]:
        total = patches + resize_positions(self.weight, self.grid, grid)
        return total.to(torch.promote_types(total.dtype, torch.float32))
