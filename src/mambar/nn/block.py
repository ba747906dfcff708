"""One residual block: normalization, mixer, residual sum."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.nn.norm import RMSNorm
from mambar.nn.placement import Grid
from mambar.nn.tracing import leaf_module


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of an image with probability `drop_prob` and rescales the others."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def keep(self, branch: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch 1 1"]:
        """Draws 1 (keep) or 0 (drop) for each image from torch's generator of the device."""
        return torch.empty(branch.shape[0], 1, 1, device=branch.device).bernoulli_(1 - self.drop_prob)

    @leaf_module
    def forward(self, branch: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        if not self.training or self.drop_prob == 0:
            return branch
        return branch * (self.keep(branch).to(branch.dtype) / (1 - self.drop_prob))

    def extra_repr(self) -> str:
        """The probability, for `print(model)`."""
        return f"drop_prob={self.drop_prob:.4g}"


class MambaBlock(nn.Module):
    """x + drop_path(proj_drop(mixer(norm(x)))), with the residual stream x in at least float32.

    `mixer` is any module called as `mixer(tokens, grid, positions)`, see `mambar.nn.mixer`. The released code orders
    the same operations as add, norm, mixer; `mambar.nn.fused_forward` computes them that way.
    """

    # Any class of `MIXERS`.
    mixer: Any

    def __init__(
        self,
        embed_dim: int,
        mixer: nn.Module,
        *,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(embed_dim, eps=norm_eps)
        self.mixer = mixer
        self.proj_drop = nn.Dropout(proj_drop)
        self.drop_path = DropPath(drop_path)

    def branch(
        self, x: Float[Tensor, "batch length dim"], grid: Grid | None = None, positions: Sequence[int] = ()
    ) -> Float[Tensor, "batch length dim"]:
        """The output of the mixer, before stochastic depth."""
        return self.proj_drop(self.mixer(self.norm(x), grid, positions))

    def forward(
        self, x: Float[Tensor, "batch length dim"], grid: Grid | None = None, positions: Sequence[int] = ()
    ) -> Float[Tensor, "batch length dim"]:
        """The stream after this block; `grid` and register `positions` go to the mixer."""
        return x + self.drop_path(self.branch(x, grid, positions))
