"""Root-mean-square normalisation as a module."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar import ops


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, in at least float32; no bias.

    The result has the dtype of the weight, whatever the dtype of the residual stream.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
        return ops.rms_norm(x, self.weight, eps=self.eps).to(self.weight.dtype)

    def extra_repr(self) -> str:
        """The size and eps, for `print(model)`."""
        return f"{self.weight.numel()}, eps={self.eps}"
