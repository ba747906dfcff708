"""Register tokens: put between the patches, and found again after the blocks."""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.nn.placement import positions
from mambar.ops.dispatch import mode


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A token sequence taken apart: patches in row order, registers in sequence order, and the patch grid."""

    patches: Float[Tensor, "batch patches dim"]
    registers: Float[Tensor, "batch registers dim"]
    grid: tuple[int, int]

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

    def positions(self, num_patches: int) -> tuple[int, ...]:
        """The positions of the registers among `num_patches` patches (see `mambar.nn.placement`)."""
        return positions(self.placement, num_patches, self.num_registers)

    def insert(self, patches: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch length dim"]:
        """Interleaves the patches, which carry their positions already, with the registers."""
        batch, num_patches, _ = patches.shape
        registers = (self.embedding + self.position).expand(batch, -1, -1).to(patches.dtype)
        pieces, start = [], 0
        for index, position in enumerate(self.positions(num_patches)):
            in_front = position - index
            pieces += [patches[:, start:in_front], registers[:, index : index + 1]]
            start = in_front
        return torch.cat([*pieces, patches[:, start:]], dim=1)  # (B, M+n, D)

    def forward(self, patches: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch length dim"]:
        return self.insert(patches)

    def split(self, tokens: Float[Tensor, "batch length dim"], grid: tuple[int, int]) -> Tokens:
        """Undoes `insert`: takes the sequence apart into patches and registers."""
        return split_tokens(tokens, self.placement, self.num_registers, grid)


def split_tokens(
    tokens: Float[Tensor, "batch length dim"], placement: str, num_registers: int, grid: tuple[int, int] | None = None
) -> Tokens:
    """Takes a sequence of patches and registers apart; without a grid the patches count as one row.

    Where a gradient may be wanted by slices, not by an index: theirs is written in one order, so it has the same bits
    in every run. Without one by an index, which costs two calls instead of two for each register; not inside a CUDA
    graph, which would read the index's memory as long as it lives.
    """
    rows, cols = grid or (1, tokens.shape[1] - num_registers)
    now = type(tokens) is Tensor and mode() == "eager" and not torch.is_grad_enabled()
    if num_registers and now and not (tokens.is_cuda and torch.cuda.is_current_stream_capturing()):
        indices = _indices(placement, rows * cols, num_registers, tokens.device)
        of_patches, of_registers = (tokens.index_select(1, index) for index in indices)
        return Tokens(patches=of_patches, registers=of_registers, grid=(rows, cols))
    patches, registers, start = [], [], 0
    for position in positions(placement, rows * cols, num_registers):
        patches.append(tokens[:, start:position])
        registers.append(tokens[:, position : position + 1])
        start = position + 1
    patches.append(tokens[:, start:])
    return Tokens(
        patches=torch.cat(patches, dim=1),
        registers=torch.cat(registers, dim=1) if registers else tokens[:, :0],
        grid=(rows, cols),
    )


@functools.lru_cache(maxsize=64)
def _indices(placement: str, num_patches: int, num_registers: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the patches and where the registers stand in the sequence."""
    of_registers = positions(placement, num_patches, num_registers)
    of_patches = sorted(set(range(num_patches + num_registers)) - set(of_registers))
    return torch.tensor(of_patches, device=device), torch.tensor(of_registers, device=device)
