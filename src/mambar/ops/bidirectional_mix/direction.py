"""The parameters of one direction of the mixer."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class ScanDirection(NamedTuple):
    """The parameters of one scan direction; the input and output projections of the mixer are shared.

    Attributes:
        conv_weight: Filters of the causal convolution.
        conv_bias: Its bias, or None.
        x_proj: Weight of the projection to the low-rank step size, B and C.
        dt_proj: Weight of the projection from the low-rank to the full step size.
        dt_bias: Added to the step size before softplus.
        A: Decay rates, negative: -exp(A_log).
        D: Weight of the skip connection.
    """

    conv_weight: Float[Tensor, "d_inner d_conv"]
    conv_bias: Float[Tensor, " d_inner"] | None
    x_proj: Float[Tensor, "dt_rank_and_states d_inner"]
    dt_proj: Float[Tensor, "d_inner dt_rank"]
    dt_bias: Float[Tensor, " d_inner"]
    A: Float[Tensor, "d_inner d_state"]
    D: Float[Tensor, " d_inner"]

    @property
    def sizes(self) -> tuple[int, int]:
        """(dt_rank, d_state); `x_proj` has dt_rank + 2 d_state rows."""
        return self.dt_proj.shape[1], self.A.shape[1]
