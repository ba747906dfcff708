"""One residual block: normalise, mix, add."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.nn.mixer import MambaMixer
from mambar.nn.norm import RMSNorm


class DropPath(nn.Module):
    """Stochastic depth: drops a whole branch for each image with probability `rate`, scales the rest up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def keep(self, branch: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch 1 1"]:
        """Draws 1 (keep) or 0 (drop) for each image from torch's generator of the device."""
        return torch.empty(branch.shape[0], 1, 1, device=branch.device).bernoulli_(1 - self.rate)

    def forward(self, branch: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        if not self.training or self.rate == 0:
            return branch
        return branch * (self.keep(branch).to(branch.dtype) / (1 - self.rate))

    def extra_repr(self) -> str:
        """The rate, for `print(model)`."""
        return f"rate={self.rate:.4g}"


class MambaBlock(nn.Module):
    """x + drop_path(mixer(norm(x))), the residual stream x in at least float32.

    The released code computes the numerically equal chain add → norm → mixer.
    """

    def __init__(
        self,
        dim: int,
        mixer: MambaMixer,
        *,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, eps=norm_eps)
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def branch(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """What the mixer adds to the stream, before stochastic depth."""
        return self.dropout(self.mixer(self.norm(x)))

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        return x + self.drop_path(self.branch(x))
