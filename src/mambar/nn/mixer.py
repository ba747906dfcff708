"""The bidirectional Mamba mixer: every token hears all tokens before it and, in a second walk, all after it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar import ops


class DirectionalScan(nn.Module):
    """The weights of one direction: convolution, step size, B, C, A and the skip D.

    `A_log` and `D` start as log(1..state) and 1; see `mambar.nn.init` for the rest.
    """

    def __init__(self, d_inner: int, *, d_state: int, d_conv: int, dt_rank: int, conv_bias: bool = True) -> None:
        super().__init__()
        self.conv_weight = nn.Parameter(torch.empty(d_inner, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(d_inner)) if conv_bias else None
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        bound = d_conv**-0.5
        for parameter in (self.conv_weight, self.conv_bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    def weights(self) -> ops.ScanDirection:
        """The weights as the op takes them; A = -exp(A_log) in at least float32."""
        dtype = torch.promote_types(self.A_log.dtype, torch.float32)
        return ops.ScanDirection(
            conv_weight=self.conv_weight,
            conv_bias=self.conv_bias,
            x_proj=self.x_proj.weight,
            dt_proj=self.dt_proj.weight,
            dt_bias=self.dt_proj.bias,
            A=-torch.exp(self.A_log.to(dtype)),
            D=self.D,
        )


class MambaMixer(nn.Module):
    """Projects in, scans in both directions, projects out.

    `average` halves the sum of both directions (Mamba-R and the released Vim checkpoints named div2 do; without
    it the residual stream grows twice as fast and mixed precision overflows). What happens between the two
    projections stands readable in `mambar.ops.bidirectional_mix.reference`.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int,
        proj_bias: bool = False,
        conv_bias: bool = True,
        average_directions: bool = True,
    ) -> None:
        super().__init__()
        inner = expand * embed_dim
        self.average_directions = average_directions
        self.in_proj = nn.Linear(embed_dim, 2 * inner, bias=proj_bias)
        self.forward_scan = DirectionalScan(inner, d_state=d_state, d_conv=d_conv, dt_rank=dt_rank, conv_bias=conv_bias)
        self.backward_scan = DirectionalScan(
            inner, d_state=d_state, d_conv=d_conv, dt_rank=dt_rank, conv_bias=conv_bias
        )
        self.out_proj = nn.Linear(inner, embed_dim, bias=proj_bias)

    def forward(self, tokens: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        xz = self.in_proj(tokens)  # (B, L, 2E)
        mixed = ops.bidirectional_mix(
            xz, self.forward_scan.weights(), self.backward_scan.weights(), average=self.average_directions
        )
        return self.out_proj(mixed)
