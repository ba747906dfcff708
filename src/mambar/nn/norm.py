"""Root-mean-square normalization."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar import ops
from mambar.nn.tracing import leaf_module
from mambar.ops.checks import autocast_dtype


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, computed in at least float32; no bias.

    The result has the dtype in which the next projection computes, whatever the dtype of the residual stream:
    autocast's, else the weight's. The projection would round its input to that dtype in a pass of its own.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        """Sets the weight to 1."""
        nn.init.ones_(self.weight)

    def _dtype(self, x: Tensor) -> torch.dtype:
        own = self.weight.dtype
        return own if own == torch.float64 else autocast_dtype(x.device.type) or own

    @leaf_module
    def forward(self, x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
        return ops.rms_norm(x, self.weight, eps=self.eps, dtype=self._dtype(x))

    def add(
        self, x: Float[Tensor, "*rest dim"], branch: Float[Tensor, "*rest dim"]
    ) -> tuple[Float[Tensor, "*rest dim"], Float[Tensor, "*rest dim"]]:
        """(norm(x + branch), x + branch), in one pass over memory."""
        if branch.dtype == self._dtype(x):
            return ops.add_rms_norm(branch, x, self.weight, eps=self.eps)
        total = x + branch
        return self(total), total

    def extra_repr(self) -> str:
        """The size and eps, for `print(model)`."""
        return f"{self.weight.numel()}, eps={self.eps}"
