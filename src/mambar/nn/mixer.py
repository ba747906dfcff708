"""Mixers: the modules that let the tokens of a sequence exchange information, and the table of them.

A mixer is built as `MIXERS[name](embed_dim, d_state=, d_conv=, expand=, dt_rank=, proj_bias=, conv_bias=,
average_directions=)` with the fields of `VisionMambaConfig` and called as `mixer(tokens, grid, positions)`: the tokens
(batch, length, embed_dim) in sequence order, the patch grid (rows, cols) and the positions of the registers in the
sequence. It returns a tensor of the shape of `tokens`. Its method `init_weights(*, depth)` initializes its parameters
for a model of `depth` blocks. Register your own class with `MIXERS["name"] = Class`; it needs no base class.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mambar import ops
from mambar.errors import InputError
from mambar.nn import init
from mambar.nn.fused_forward import are_plain_tensors, has_hooks, is_plain_linear, join_sequence, split_sequence
from mambar.nn.placement import Grid
from mambar.nn.tracing import leaf_module


class DirectionalScan(nn.Module):
    """One scan direction: causal convolution, input-dependent step size, B and C, and the gated selective scan.

    Calling it composes the ops and calls `x_proj` and `dt_proj` as modules. `mix_directions` reads the weights instead
    and runs the fused op if the result is the same.
    """

    def __init__(
        self, d_inner: int, *, d_state: int, d_conv: int, dt_rank: int, conv_bias: bool = True, reverse: bool = False
    ) -> None:
        super().__init__()
        self.d_state, self.dt_rank, self.reverse = d_state, dt_rank, reverse
        self.conv_weight = nn.Parameter(torch.empty(d_inner, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(d_inner)) if conv_bias else None
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes the scan's own parameters: convolution uniform ±d_conv^-½, A_log = log(1..d_state), D = 1."""
        bound = self.conv_weight.shape[1] ** -0.5
        for parameter in (self.conv_weight, self.conv_bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)
        with torch.no_grad():
            self.A_log.copy_(torch.log(torch.arange(1.0, self.d_state + 1)).expand_as(self.A_log))
            self.D.fill_(1.0)

    def weights(self) -> ops.ScanDirection:
        """The weights as the fused op takes them; A = -exp(A_log) in at least float32."""
        return self.log_weights()._replace(A=self._decay())

    def log_weights(self) -> ops.ScanDirection:
        """The weights as the fused op takes them with `A_is_log`."""
        # Looked up in the dictionaries: nn.Module's attributes take as long as a small operator.
        own: dict[str, Any] = self._parameters
        x_proj: dict[str, Any] = self.x_proj._parameters
        dt_proj: dict[str, Any] = self.dt_proj._parameters
        return ops.ScanDirection(
            own["conv_weight"],
            own.get("conv_bias"),
            x_proj["weight"],
            dt_proj["weight"],
            dt_proj["bias"],
            own["A_log"],
            own["D"],
        )

    def _decay(self) -> Float[Tensor, "d_inner d_state"]:
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def forward(
        self, x: Float[Tensor, "batch length d_inner"], z: Float[Tensor, "batch length d_inner"]
    ) -> Float[Tensor, "batch length d_inner"]:
        """The scan of `x` in this direction, gated by `z`."""
        u = ops.causal_conv1d(x, self.conv_weight, self.conv_bias, reverse=self.reverse)
        low, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if is_plain_linear(self.dt_proj):
            # The scan adds the bias in float32, also where the projection runs in a 16-bit type.
            delta, dt_bias = functional.linear(low, self.dt_proj.weight), self.dt_proj.bias
        else:
            delta, dt_bias = self.dt_proj(low), None
        return ops.selective_scan(
            u, delta, self._decay(), B, C, self.D, z, dt_bias, delta_softplus=True, reverse=self.reverse
        )


def mix_directions(
    xz: Float[Tensor, "batch length two_inner"], forward_scan: nn.Module, backward_scan: nn.Module, *, average: bool
) -> Float[Tensor, "batch length d_inner"]:
    """The sum of both scans of x, gated by z, halved if `average`; `xz` is x and z side by side.

    Runs the fused op if every submodule is the plain one, otherwise calls the scans as modules, so that adapters,
    quantized layers, parametrizations and hooks take effect.
    """
    if _is_plain(forward_scan) and _is_plain(backward_scan):
        directions = (forward_scan.log_weights(), backward_scan.log_weights())  # pyright: ignore[reportCallIssue]
        return ops.bidirectional_mix(xz, *directions, average=average, A_is_log=True)  # pyright: ignore[reportArgumentType]
    x, z = xz.chunk(2, dim=-1)
    total = forward_scan(x, z) + backward_scan(x, z)
    return total / 2 if average else total


def _is_plain(scan: nn.Module) -> bool:
    return (
        type(scan) is DirectionalScan
        and are_plain_tensors(scan)
        and not has_hooks(scan)
        and is_plain_linear(scan.x_proj)
        and is_plain_linear(scan.dt_proj)
        and scan.x_proj.bias is None
        and scan.dt_proj.bias is not None
    )


class ScanMixer(nn.Module):
    """The parameters of the mixers below: a projection to x and z, the scans of `SCANS`, a projection back.

    `average_directions` halves the sum of two directions (Mamba-R and the released Vim checkpoints named div2 do;
    without it the residual stream grows twice as fast and mixed precision overflows).
    """

    # The attributes that hold the scans, and whether each scans from the last token to the first.
    SCANS: ClassVar[dict[str, bool]]

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
        d_inner = expand * embed_dim
        sizes = {"d_state": d_state, "d_conv": d_conv, "dt_rank": dt_rank, "conv_bias": conv_bias}
        self.average_directions = average_directions
        self.in_proj = nn.Linear(embed_dim, 2 * d_inner, bias=proj_bias)
        for name, reverse in self.SCANS.items():
            self.add_module(name, DirectionalScan(d_inner, reverse=reverse, **sizes))
        self.out_proj = nn.Linear(d_inner, embed_dim, bias=proj_bias)

    def init_weights(self, *, depth: int) -> None:
        """Initializes all directions with the same step-size distribution; scales out_proj by 1 / sqrt(depth)."""
        for name in self.SCANS:
            init.init_step_size(self.get_submodule(name).dt_proj)  # pyright: ignore[reportArgumentType]
        init.init_projections(self.in_proj, self.out_proj, depth=depth)


class MambaMixer(ScanMixer):
    """Bidirectional mixer (`bidirectional`): project in, scan in both directions, average, project out.

    The computation between the projections is written out in `mambar.ops.bidirectional_mix.composed`.
    """

    SCANS: ClassVar = {"forward_scan": False, "backward_scan": True}
    forward_scan: DirectionalScan
    backward_scan: DirectionalScan

    @leaf_module
    def forward(
        self, tokens: Float[Tensor, "batch length dim"], grid: Grid | None = None, positions: Sequence[int] = ()
    ) -> Float[Tensor, "batch length dim"]:
        """Each token receives context from both directions; grid and positions are not used."""
        xz = self.in_proj(tokens)  # (B, L, 2E)
        mixed = mix_directions(xz, self.forward_scan, self.backward_scan, average=self.average_directions)
        return self.out_proj(mixed)


class ForwardMixer(ScanMixer):
    """Causal mixer (`forward`): one scan from the first token to the last, as in a language model.

    A token receives context from the tokens in front of it only. `average_directions` has no effect.
    """

    SCANS: ClassVar = {"forward_scan": False}
    forward_scan: DirectionalScan

    @leaf_module
    def forward(
        self, tokens: Float[Tensor, "batch length dim"], grid: Grid | None = None, positions: Sequence[int] = ()
    ) -> Float[Tensor, "batch length dim"]:
        """Each token receives context from the tokens in front of it; grid and positions are not used."""
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        return self.out_proj(self.forward_scan(x, z))


class CrossScanMixer(ScanMixer):
    """Two-dimensional mixer (`cross_scan`): scans along rows and along columns, in both directions each.

    The four scan orders are VMamba's (arXiv 2401.10166). The row order is the sequence itself. In the column order the
    patches run down each column, from the left column to the right. Every register keeps its position in the sequence:
    the number of patches in front of it is the same in both orders. Unlike VMamba, each scan has its own causal
    convolution instead of one 3x3 convolution before all four, and there is no norm before the gate, as in
    `MambaMixer`.
    """

    SCANS: ClassVar = {**MambaMixer.SCANS, "column_forward_scan": False, "column_backward_scan": True}
    forward_scan: DirectionalScan
    backward_scan: DirectionalScan
    column_forward_scan: DirectionalScan
    column_backward_scan: DirectionalScan

    @leaf_module
    def forward(
        self, tokens: Float[Tensor, "batch length dim"], grid: Grid | None = None, positions: Sequence[int] = ()
    ) -> Float[Tensor, "batch length dim"]:
        """Each token receives context from all others, in row order and in column order."""
        if grid is None:
            raise InputError("mixer='cross_scan' needs the patch grid; call it as mixer(tokens, grid, positions).")
        average = self.average_directions
        xz = self.in_proj(tokens)  # (B, L, 2E)
        by_rows = mix_directions(xz, self.forward_scan, self.backward_scan, average=average)
        columns = transpose_patches(xz, grid, positions)
        by_columns = mix_directions(columns, self.column_forward_scan, self.column_backward_scan, average=average)
        total = by_rows + transpose_patches(by_columns, (grid[1], grid[0]), positions)
        return self.out_proj(total / 2 if average else total)


def transpose_patches(
    tokens: Float[Tensor, "batch length dim"], grid: Grid, positions: Sequence[int]
) -> Float[Tensor, "batch length dim"]:
    """The sequence with its patches in column order instead of row order; registers keep their positions."""
    patches, registers = split_sequence(tokens, positions)
    patches = patches.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
    return join_sequence(patches, registers, positions)


MIXERS: dict[str, Callable[..., nn.Module]] = {
    "bidirectional": MambaMixer,
    "forward": ForwardMixer,
    "cross_scan": CrossScanMixer,
}
