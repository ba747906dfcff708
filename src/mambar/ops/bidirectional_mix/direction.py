"""The parameters of one direction of the mixer."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class ScanDirection(NamedTuple):
    """What one direction of the mixer owns; the two directions share only the projections around them."""

    conv_weight: Float[Tensor, "inner taps"]
    conv_bias: Float[Tensor, " inner"] | None
    x_proj: Float[Tensor, "rank_and_states inner"]
    """To the step size's low rank, then B, then C: R + 2N rows."""
    dt_proj: Float[Tensor, "inner rank"]
    dt_bias: Float[Tensor, " inner"]
    """Added to the step size before softplus."""
    A: Float[Tensor, "inner state"]
    """Negative: -exp(A_log)."""
    D: Float[Tensor, " inner"]

    @property
    def sizes(self) -> tuple[int, int]:
        """The rank of the step size and the number of states: how the rows of `x_proj` are split."""
        return self.dt_proj.shape[1], self.A.shape[1]
